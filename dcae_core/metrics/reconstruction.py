"""How close a reconstruction is to its image: PSNR and SSIM per image, on 8-bit pixels."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from dcae_core.errors import DataError

_PEAK = 255.0
_SSIM_SIGMA = 1.5
_SSIM_RADIUS, _SSIM_TAPS = 5, 11  # the window of the SSIM paper
_SSIM_C1 = (0.01 * _PEAK) ** 2
_SSIM_C2 = (0.03 * _PEAK) ** 2
_STRIP_VALUES = 1 << 20  # a large image is measured a strip of rows at a time: 4 MB per float32 intermediate
_FEWEST_ROWS = 16

ReadPair = Callable[[int, int], tuple[Tensor, Tensor]]
"""`read(top, bottom)` gives these rows of two batches of images: twice uint8 (B, C, bottom - top, W)."""


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise DataError(f"images of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.ndim != 4 or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise DataError(
            f"expected two uint8 batches of shape (B, C, H, W), got {a.dtype} and {b.dtype} of shape {tuple(a.shape)}"
        )


def _rows_of(a: Tensor, b: Tensor) -> ReadPair:
    return lambda top, bottom: (a[:, :, top:bottom], b[:, :, top:bottom])


def _strips(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Ranges of rows that bound the memory of a measurement; one range for images of usual size."""
    height = shape[2]
    rows = max(_STRIP_VALUES // (shape.numel() // height), _FEWEST_ROWS)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def _add_strips(measure: Callable[[int, int], Tensor], shape: torch.Size) -> Tensor:
    """The sum of what is measured in each strip, added in place: kept results would scatter the memory between them."""
    strips = _strips(shape)
    total = measure(*next(strips))
    for top, bottom in strips:
        total += measure(top, bottom)
    return total


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, over all its pixels and channels.

    The squared error is summed in integers, so it is exact whatever the device.

    Args:
        a: uint8 images (B, C, H, W).
        b: the same shape; DataError where shapes or types do not fit.

    Returns:
        (B,) float64 (float32 where the device has no float64), in dB; infinite where two images are equal.

    Source: the published evaluation averages this per image (efficientvit, apps/metrics/psnr).
    """
    _check_pair(a, b)
    return psnr_by_rows(_rows_of(a, b), a.shape)


def psnr_by_rows(read: ReadPair, shape: torch.Size) -> Tensor:
    """`psnr` of images (B, C, H, W) that are read a strip of rows at a time and never held whole."""

    def squared_error(top: int, bottom: int) -> Tensor:
        a, b = read(top, bottom)
        difference = a.to(torch.int32) - b.to(torch.int32)
        return difference.square().flatten(1).sum(dim=1, dtype=torch.int64)

    total = _add_strips(squared_error, shape)
    precise = torch.float32 if total.device.type == "mps" else torch.float64
    mean_squared_error = total.to(precise) / shape[1:].numel()
    return 10.0 * torch.log10(_PEAK**2 / mean_squared_error)


def _gaussian_window() -> list[tuple[int, float]]:
    """(offset, weight) of each tap, the lightest first: small terms are not lost beside a large sum."""
    taps = {offset: math.exp(-(((offset - _SSIM_RADIUS) / _SSIM_SIGMA) ** 2) / 2) for offset in range(_SSIM_TAPS)}
    total = sum(taps.values())
    return sorted(((offset, weight / total) for offset, weight in taps.items()), key=lambda tap: tap[1])


def _blur(x: Tensor) -> Tensor:
    """Convolve every channel of (B, C, H, W) with the separable window; edges are mirrored.

    A sum of shifted copies: four times as fast as a grouped convolution on a CPU, in an eighth of its memory.
    """
    height, width = x.shape[2:]
    window = _gaussian_window()
    x = F.pad(x, (_SSIM_RADIUS,) * 4, mode="reflect")
    rows = torch.zeros_like(x[:, :, :height])
    for offset, weight in window:
        rows.add_(x[:, :, offset : offset + height], alpha=weight)
    blurred = torch.zeros_like(rows[:, :, :, :width])
    for offset, weight in window:
        blurred.add_(rows[:, :, :, offset : offset + width], alpha=weight)
    return blurred


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image: 11-tap Gaussian window (sigma 1.5), data range 255, mean over all pixels.

    Args:
        a: uint8 images (B, C, H, W), at least 6 pixels high and wide.
        b: the same shape; DataError where shapes, types or sides do not fit.

    Returns:
        (B,) float32, at most 1.

    Source: Wang et al. 2004, eq. 13; defaults and mirrored edges as in torchmetrics functional/image/ssim.py.
    """
    _check_pair(a, b)
    if min(a.shape[-2:]) <= _SSIM_RADIUS:
        raise DataError(f"SSIM needs images of at least 6x6 pixels, got {a.shape[-1]}x{a.shape[-2]}")
    return ssim_by_rows(_rows_of(a, b), a.shape)


def ssim_by_rows(read: ReadPair, shape: torch.Size) -> Tensor:
    """`ssim` of images (B, C, H, W) that are read a strip of rows at a time and never held whole."""
    height = shape[2]

    def similarity(top: int, bottom: int) -> Tensor:
        # Rows whose window reaches over the end of the strip are measured with the neighbouring rows beside them.
        start, stop = max(top - _SSIM_RADIUS, 0), min(bottom + _SSIM_RADIUS, height)
        return _ssim_map(*read(start, stop))[:, :, top - start : bottom - start].mean(dim=(1, 3)).sum(dim=1)

    return _add_strips(similarity, shape) / height


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """The similarity around every value: (B, C, H, W)."""
    # Variances do not change under a shift; centred values lose fewer bits when squares are subtracted.
    x, y = a.to(torch.float32) - 128, b.to(torch.float32) - 128
    mean_x, mean_y, xx, yy, xy = (_blur(t) for t in (x, y, x * x, y * y, x * y))
    variance_x = (xx - mean_x * mean_x).clamp(min=0)
    variance_y = (yy - mean_y * mean_y).clamp(min=0)
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 128, mean_y + 128
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return luminance * structure
