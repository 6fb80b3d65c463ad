"""Features of images by the Inception network of FID: how images become its input, and its published weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dcae_core.errors import CheckpointError, DataError
from dcae_core.files import sha256_of_file
from dcae_core.metrics.torchvision_networks import require_torchvision
from dcae_core.weights import INCEPTION_2015_12_05, fetch_published_weights, read_weights

if TYPE_CHECKING:
    from dcae_core.metrics.inception_network import InceptionV3

NUM_FEATURES = 2048
NUM_SPATIAL_FEATURES = 17 * 17 * 7
FID_RESIZE = "bilinear to 299x299, pixel centres aligned, no antialias, [-1, 1]"
INCEPTION_SCORE_RESIZE = "bilinear to 299x299 as TensorFlow 1, corners aligned, (x - 128) / 128"
ResizeRule = Literal["half_pixel", "tensorflow"]
# How the images of an FID become Inception's input: as efficientvit does, or as ADM's TensorFlow graph does.
RESIZE_RULES: dict[ResizeRule, str] = {"half_pixel": FID_RESIZE, "tensorflow": INCEPTION_SCORE_RESIZE}
_INPUT_SIZE = 299


def resize_for_fid(images: Tensor) -> Tensor:
    """Prepare uint8 images (B, 3, H, W) as the published FID does: scaled to [-1, 1], then resized to 299x299.

    Source: efficientvit apps/metrics/fid/fid.py.
    """
    x = images.to(torch.float32) / 127.5 - 1
    if x.shape[-2:] == (_INPUT_SIZE, _INPUT_SIZE):
        return x
    return F.interpolate(x, size=(_INPUT_SIZE, _INPUT_SIZE), mode="bilinear", align_corners=False)


def _tensorflow_taps(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the 299 outputs: lower and upper source index, and the weight of the upper one."""
    position = torch.arange(_INPUT_SIZE, dtype=torch.float32, device=device) * torch.tensor(size / _INPUT_SIZE)
    lower = position.long()
    return lower, (lower + 1).clamp(max=size - 1), position - lower


def resize_for_inception_score(images: Tensor) -> Tensor:
    """Prepare uint8 images (B, 3, H, W) as the original TensorFlow graph does, without half-pixel offsets.

    Source: tensorflow core/kernels/image_resizer_state.h (1.x), as in torch-fidelity, which the published score uses.
    """
    x = images.to(torch.float32)
    left, right, x_weight = _tensorflow_taps(x.shape[3], x.device)
    top, bottom, y_weight = _tensorflow_taps(x.shape[2], x.device)
    x = torch.lerp(x[..., left], x[..., right], x_weight)
    x = torch.lerp(x[..., top, :], x[..., bottom, :], y_weight[:, None])
    return (x - 128) / 128


class InceptionOutput(NamedTuple):
    """Of a batch, float32 on the CPU: features (B, 2048), logits (B, 1008) if asked for, spatial features (B, 2023)."""

    features: Tensor
    logits: Tensor | None
    spatial: Tensor


class InceptionExtractor:
    """InceptionV3 with weights from a file, and that file's SHA-256 (hexadecimal) to be recorded with every score."""

    def __init__(self, network: "InceptionV3", sha256: str) -> None:
        self.network = network
        self.sha256 = sha256

    @torch.no_grad()
    def __call__(
        self, images: Tensor, *, with_logits: bool = False, resize: ResizeRule = "half_pixel"
    ) -> InceptionOutput:
        """Features of uint8 images (B, 3, H, W) of any size, resized by a rule, and, asked for, the unbiased logits.

        The Inception Score needs the logits. They cost a second pass, because the published FID and the published
        Inception Score resize differently. DataError where the images are not uint8 (B, 3, H, W).
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        images = images.to(next(self.network.parameters()).device)
        by_rule = {}
        if resize == "tensorflow" or with_logits:
            by_rule["tensorflow"] = self.network.forward_with_spatial(resize_for_inception_score(images))
        if resize == "half_pixel":
            by_rule["half_pixel"] = self.network.forward_with_spatial(resize_for_fid(images))
        logits = self.network.unbiased_logits(by_rule["tensorflow"][0]).cpu() if with_logits else None
        features, spatial = by_rule[resize]
        return InceptionOutput(features.cpu(), logits, spatial.cpu())


def load_inception(weights: Path | None = None, *, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The Inception network with the published weights (downloaded once, 96 MB) or with those of a file.

    The file has the published names and shapes.

    Raises:
        DownloadError: the published weights are not in the cache and cannot be downloaded.
        CheckpointError: the file is missing, damaged, or holds other names or shapes.
        ResourceError: torchvision is missing or does not fit torch.
    """
    require_torchvision()
    from dcae_core.metrics.inception_network import InceptionV3

    path = weights or fetch_published_weights(INCEPTION_2015_12_05)
    state = read_weights(path)
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
    return InceptionExtractor(network.to(device), sha256_of_file(path))
