"""Normalisation of feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


class RMSNorm2d(nn.Module):
    """Root-mean-square norm over the channels of each position, with weight and bias.

    The statistic is computed in float32 whatever the dtype of the input, the result returned in that dtype.
    Source: "trms2d" of the published implementation (efficientvit/models/nn/norm.py).

    Args:
        channels: C of the input (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) to the same shape."""
        positions = x.permute(0, 2, 3, 1).float()
        normalised = F.rms_norm(positions, (positions.shape[-1],), eps=NORM_EPS)
        scaled = torch.addcmul(self.bias.float(), normalised, self.weight.float())
        return scaled.to(x.dtype).permute(0, 3, 1, 2)


def build_norm(kind: str, channels: int) -> nn.Module:
    """The norm layer named in a configuration: "rms_norm" or "batch_norm"."""
    if kind == "rms_norm":
        return RMSNorm2d(channels)
    if kind == "batch_norm":
        return nn.BatchNorm2d(channels, eps=NORM_EPS)
    raise AssertionError(f"unchecked norm {kind!r}")
