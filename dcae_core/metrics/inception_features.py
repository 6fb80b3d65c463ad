"""From 8-bit pictures to Inception features: the two published ways of resizing, and the weights on file."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcae_core.errors import CheckpointError, DataError
from dcae_core.files import sha256_of_file
from dcae_core.metrics.inception import InceptionV3
from dcae_core.metrics.weights import INCEPTION_2015_12_05, fetch, read_weights_file

_INPUT_SIZE = 299

FID_RESIZE = "bilinear to 299x299, pixel centres aligned, no antialias, [-1, 1]"
INCEPTION_SCORE_RESIZE = "bilinear to 299x299 as TensorFlow 1, corners aligned, (x - 128) / 128"


def resize_for_fid(pictures: Tensor) -> Tensor:
    """Prepare uint8 pictures (B, 3, H, W) as the published FID does: scaled to [-1, 1], then resized to 299x299.

    Source: efficientvit apps/metrics/fid/fid.py.
    """
    x = pictures.to(torch.float32) / 127.5 - 1
    if x.shape[-2:] == (_INPUT_SIZE, _INPUT_SIZE):
        return x
    return F.interpolate(x, size=(_INPUT_SIZE, _INPUT_SIZE), mode="bilinear", align_corners=False)


def _tensorflow_taps(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the 299 outputs: lower and upper source index, and the weight of the upper one."""
    position = torch.arange(_INPUT_SIZE, dtype=torch.float32, device=device) * torch.tensor(size / _INPUT_SIZE)
    lower = position.long()
    return lower, (lower + 1).clamp(max=size - 1), position - lower


def resize_for_inception_score(pictures: Tensor) -> Tensor:
    """Prepare uint8 pictures (B, 3, H, W) as the original TensorFlow graph does, without half-pixel offsets.

    Source: tensorflow core/kernels/image_resizer_state.h (1.x), as in torch-fidelity, which the published score uses.
    """
    x = pictures.to(torch.float32)
    left, right, x_weight = _tensorflow_taps(x.shape[3], x.device)
    top, bottom, y_weight = _tensorflow_taps(x.shape[2], x.device)
    x = torch.lerp(x[..., left], x[..., right], x_weight)
    x = torch.lerp(x[..., top, :], x[..., bottom, :], y_weight[:, None])
    return (x - 128) / 128


class InceptionOutput(NamedTuple):
    """What a batch gives: features (B, 2048) and, where asked for, logits (B, 1008), both float32 on the CPU."""

    features: Tensor
    logits: Tensor | None


class InceptionExtractor:
    """InceptionV3 with weights from a file, and that file's SHA-256 to be recorded with every score.

    Attributes:
        sha256: hash of the weights file in hexadecimal.
    """

    def __init__(self, network: InceptionV3, sha256: str) -> None:
        self.network = network
        self.sha256 = sha256

    @torch.no_grad()
    def __call__(self, pictures: Tensor, *, with_logits: bool = False) -> InceptionOutput:
        """Features of uint8 pictures; logits are asked for by the Inception Score and cost a second pass.

        The second pass is needed because the published FID and the published Inception Score resize differently.

        Args:
            pictures: uint8 (B, 3, H, W), any size.
            with_logits: also compute the unbiased logits.

        Raises:
            DataError: the pictures are not uint8 (B, 3, H, W).
        """
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise DataError(f"expected uint8 pictures (B, 3, H, W), got {pictures.dtype} {tuple(pictures.shape)}")
        pictures = pictures.to(next(self.network.parameters()).device)
        features = self.network(resize_for_fid(pictures)).cpu()
        if not with_logits:
            return InceptionOutput(features, None)
        logits = self.network.unbiased_logits(self.network(resize_for_inception_score(pictures)))
        return InceptionOutput(features, logits.cpu())


def load_inception(weights: Path | None = None, *, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The Inception network with the published weights (downloaded once, 96 MB) or with those of a file.

    Args:
        weights: a file with the published names and shapes; None: the published file.
        device: where the network runs.

    Raises:
        DownloadError: the published weights are not in the cache and cannot be downloaded.
        CheckpointError: the file is missing, damaged, or holds other names or shapes.
    """
    path = weights or fetch(INCEPTION_2015_12_05)
    state = read_weights_file(path)
    network = InceptionV3()
    # The counters of batch norm are not weights; the published file has none, files saved from PyTorch have them.
    expected = {name: w.shape for name, w in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = {name: w.shape for name, w in state.items() if not name.endswith("num_batches_tracked")}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{path} is not the Inception network of 2015-12-05: {len(wrong)} names or shapes differ, first {wrong[0]}"
        )
    network.load_state_dict(state, strict=False)
    if any(not torch.isfinite(weight).all() for weight in state.values()):
        raise CheckpointError(f"{path} holds weights that are not finite numbers: fetch the file again")
    return InceptionExtractor(network.to(device), sha256_of_file(path))
