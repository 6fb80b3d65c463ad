"""The Inception network of FID, and features of images."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcae_core.errors import CheckpointError, DataError
from dcae_core.files import sha256_of_file
from dcae_core.weights import INCEPTION_2015_12_05, fetch_published_weights, read_weights

NUM_FEATURES = 2048
NUM_LOGITS = 1008
FID_RESIZE = "bilinear to 299x299, pixel centres aligned, no antialias, [-1, 1]"
INCEPTION_SCORE_RESIZE = "bilinear to 299x299 as TensorFlow 1, corners aligned, (x - 128) / 128"
ResizeRule = Literal["half_pixel", "tensorflow"]
# How the images of an FID become Inception's input: as efficientvit does, or as ADM's TensorFlow graph does.
RESIZE_RULES: dict[ResizeRule, str] = {"half_pixel": FID_RESIZE, "tensorflow": INCEPTION_SCORE_RESIZE}
_INPUT_SIZE = 299


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    """35x35: 1x1, 5x5 and double 3x3 convolutions beside a pooled branch."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(in_channels, 64, 1)
        self.branch5x5_1 = _Conv(in_channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch5x5_2(self.branch5x5_1(x)),
                self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                self.branch_pool(_average(x)),
            ),
            dim=1,
        )


class _BlockB(nn.Module):
    """35x35 to 17x17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(in_channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)), dim=1)


def _row(in_channels: int, out_channels: int) -> _Conv:
    return _Conv(in_channels, out_channels, (1, 7), padding=(0, 3))


def _column(in_channels: int, out_channels: int) -> _Conv:
    return _Conv(in_channels, out_channels, (7, 1), padding=(3, 0))


class _BlockC(nn.Module):
    """17x17: 7x7 convolutions factored into rows and columns."""

    def __init__(self, inner_channels: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, inner_channels, 1)
        self.branch7x7_2 = _row(inner_channels, inner_channels)
        self.branch7x7_3 = _column(inner_channels, 192)
        self.branch7x7dbl_1 = _Conv(768, inner_channels, 1)
        self.branch7x7dbl_2 = _column(inner_channels, inner_channels)
        self.branch7x7dbl_3 = _row(inner_channels, inner_channels)
        self.branch7x7dbl_4 = _column(inner_channels, inner_channels)
        self.branch7x7dbl_5 = _row(inner_channels, 192)
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), single, double, self.branch_pool(_average(x))), dim=1)


class _BlockD(nn.Module):
    """17x17 to 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _row(192, 192)
        self.branch7x7x3_3 = _column(192, 192)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_2(self.branch7x7x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(large))
        return torch.cat((small, large, F.max_pool2d(x, 3, stride=2)), dim=1)


class _BlockE(nn.Module):
    """8x8: 3x3 convolutions split into rows and columns side by side."""

    def __init__(self, in_channels: int, *, pool_by_maximum: bool) -> None:
        super().__init__()
        self.pool_by_maximum = pool_by_maximum
        self.branch1x1 = _Conv(in_channels, 320, 1)
        self.branch3x3_1 = _Conv(in_channels, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(in_channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        # The published graph pools its last block by maximum: part of the definition, whatever its reason was.
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pool_by_maximum else _average(x)
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ),
            dim=1,
        )


class InceptionV3(nn.Module):
    """The network alone, with random weights, frozen, in evaluation mode; about 5.7 GMACs per image."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _BlockA(192, pool_channels=32)
        self.Mixed_5c = _BlockA(256, pool_channels=64)
        self.Mixed_5d = _BlockA(288, pool_channels=64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b = _BlockC(128)
        self.Mixed_6c = _BlockC(160)
        self.Mixed_6d = _BlockC(160)
        self.Mixed_6e = _BlockC(192)
        self.Mixed_7a = _BlockD()
        self.Mixed_7b = _BlockE(1280, pool_by_maximum=False)
        self.Mixed_7c = _BlockE(2048, pool_by_maximum=True)
        self.fc = nn.Linear(NUM_FEATURES, NUM_LOGITS)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "InceptionV3":
        """Stay in evaluation mode: a metric does not change with the network it measures."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 299, 299) in [-1, 1] -> features of the last pooling layer (B, 2048), none negative."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def unbiased_logits(self, features: Tensor) -> Tensor:
        """Class logits (B, 1008) without the bias, as the Inception Score takes them, from features (B, 2048)."""
        return features @ self.fc.weight.T


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
    """What a batch gives: features (B, 2048) and, where asked for, logits (B, 1008), both float32 on the CPU."""

    features: Tensor
    logits: Tensor | None


class InceptionExtractor:
    """InceptionV3 with weights from a file, and that file's SHA-256 (hexadecimal) to be recorded with every score."""

    def __init__(self, network: InceptionV3, sha256: str) -> None:
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
            by_rule["tensorflow"] = self.network(resize_for_inception_score(images))
        if resize == "half_pixel":
            by_rule["half_pixel"] = self.network(resize_for_fid(images))
        logits = self.network.unbiased_logits(by_rule["tensorflow"]).cpu() if with_logits else None
        return InceptionOutput(by_rule[resize].cpu(), logits)


def load_inception(weights: Path | None = None, *, device: torch.device | str = "cpu") -> InceptionExtractor:
    """The Inception network with the published weights (downloaded once, 96 MB) or with those of a file.

    The file has the published names and shapes.

    Raises:
        DownloadError: the published weights are not in the cache and cannot be downloaded.
        CheckpointError: the file is missing, damaged, or holds other names or shapes.
    """
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
