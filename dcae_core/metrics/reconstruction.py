"""How close a reconstruction is to its picture: PSNR and SSIM per picture, on 8-bit pixels."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from dcae_core.errors import DataError

_PEAK = 255.0
_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5  # the 11-tap window of the SSIM paper
_SSIM_C1 = (0.01 * _PEAK) ** 2
_SSIM_C2 = (0.03 * _PEAK) ** 2
_STRIP_VALUES = 1 << 20  # a large picture is measured a strip of rows at a time: 4 MB per float32 intermediate


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise DataError(f"pictures of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.ndim != 4 or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise DataError(
            f"expected two uint8 batches of shape (B, C, H, W), got {a.dtype} and {b.dtype} of shape {tuple(a.shape)}"
        )


def _strips(a: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that bound the memory of a measurement; one range for pictures of usual size."""
    height = a.shape[2]
    rows = max(_STRIP_VALUES // (a.numel() // height), 64)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, over all its pixels and channels.

    The squared error is summed in integers, so it is exact whatever the device.

    Args:
        a: uint8 pictures (B, C, H, W).
        b: uint8 pictures of the same shape.

    Returns:
        (B,) float64 (float32 where the device has no float64), in dB; infinite where two pictures are equal.

    Raises:
        DataError: the shapes or types do not fit.

    Source: the published evaluation averages this per picture (efficientvit, apps/metrics/psnr).
    """
    _check_pair(a, b)
    squared_error = torch.zeros(a.shape[0], dtype=torch.int64, device=a.device)
    for top, bottom in _strips(a):
        difference = a[:, :, top:bottom].to(torch.int32) - b[:, :, top:bottom].to(torch.int32)
        squared_error += difference.square().flatten(1).sum(dim=1, dtype=torch.int64)
    precise = torch.float32 if a.device.type == "mps" else torch.float64
    mean_squared_error = squared_error.to(precise) / a[0].numel()
    return 10.0 * torch.log10(_PEAK**2 / mean_squared_error)


def _gaussian_window(device: torch.device) -> Tensor:
    offsets = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=torch.float32, device=device)
    window = torch.exp(-((offsets / _SSIM_SIGMA) ** 2) / 2)
    return window / window.sum()


def _blur(x: Tensor, window: Tensor) -> Tensor:
    """Convolve every channel of (B, C, H, W) with the separable window; edges are mirrored."""
    channels, taps = x.shape[1], window.numel()
    x = F.pad(x, (_SSIM_RADIUS,) * 4, mode="reflect")
    x = F.conv2d(x, window.view(1, 1, taps, 1).expand(channels, 1, taps, 1), groups=channels)
    return F.conv2d(x, window.view(1, 1, 1, taps).expand(channels, 1, 1, taps), groups=channels)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each picture: 11-tap Gaussian window (sigma 1.5), data range 255, mean over all pixels.

    Args:
        a: uint8 pictures (B, C, H, W), at least 6 pixels high and wide.
        b: uint8 pictures of the same shape.

    Returns:
        (B,) float32, at most 1.

    Raises:
        DataError: the shapes or types do not fit, or a side is shorter than 6 pixels.

    Source: Wang et al. 2004, eq. 13; defaults and mirrored edges as in torchmetrics functional/image/ssim.py.
    """
    _check_pair(a, b)
    if min(a.shape[-2:]) <= _SSIM_RADIUS:
        raise DataError(f"SSIM needs pictures of at least 6x6 pixels, got {a.shape[-1]}x{a.shape[-2]}")
    window = _gaussian_window(a.device)
    total = torch.zeros(a.shape[0], dtype=torch.float32, device=a.device)
    for top, bottom in _strips(a):
        # Rows whose window reaches over the end of the strip are measured with the neighbouring rows beside them.
        start, stop = max(top - _SSIM_RADIUS, 0), bottom + _SSIM_RADIUS
        similarity = _ssim_map(a[:, :, start:stop], b[:, :, start:stop], window)[:, :, top - start : bottom - start]
        total += similarity.mean(dim=(1, 3)).sum(dim=1)
    return total / a.shape[2]


def _ssim_map(a: Tensor, b: Tensor, window: Tensor) -> Tensor:
    """The similarity around every value: (B, C, H, W)."""
    # Variances do not change under a shift; centred values lose fewer bits when squares are subtracted.
    x, y = a.to(torch.float32) - 128, b.to(torch.float32) - 128
    mean_x, mean_y, xx, yy, xy = (_blur(t, window) for t in (x, y, x * x, y * y, x * y))
    variance_x = (xx - mean_x * mean_x).clamp(min=0)
    variance_y = (yy - mean_y * mean_y).clamp(min=0)
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 128, mean_y + 128
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return luminance * structure
