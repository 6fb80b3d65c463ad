"""Losses that compare pixels, or neighbouring pixels, and need no network."""

import torch
import torch.nn.functional as F
from torch import Tensor

_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of a data range of 2: [-1, 1]
_RADIUS, _SIGMA = 5, 1.5


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of (B, 3, H, W) and the same shape, as a scalar."""
    return (x - y).abs().mean()


def mse_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of (B, 3, H, W) and the same shape, as a scalar."""
    return (x - y).square().mean()


def gradient_loss(x: Tensor, y: Tensor, num_scales: int = 3) -> Tensor:
    """Mean absolute difference of the differences between neighbouring pixels, averaged over scales.

    Each scale halves the pictures by averaging 2x2 pixels. Punishes blur and ringing that pixel losses forgive.

    Args:
        x: (B, 3, H, W).
        y: the same shape.
        num_scales: at most; fewer where the pictures get smaller than 2 pixels.

    Returns:
        A scalar.
    """
    error = x - y
    terms = []
    for _ in range(num_scales):
        if min(error.shape[-2:]) < 2:
            break
        terms.append(error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        error = F.avg_pool2d(error, 2)
    return torch.stack(terms).mean()


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - structural similarity of pictures in [-1, 1], mean over windows that lie wholly inside.

    Args:
        x: (B, 3, H, W), at least 11 pixels high and wide.
        y: the same shape.

    Returns:
        A scalar in [0, 2].

    Source: Wang et al. 2004, eq. 13; Gaussian window of 11x11, sigma 1.5.
    """
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-((offsets / _SIGMA) ** 2) / 2)
    window = window / window.sum()

    def blur(t: Tensor) -> Tensor:
        channels = t.shape[1]
        t = F.conv2d(t, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(t, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x * mean_x
    variance_y = blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return 1.0 - (luminance * structure).mean()
