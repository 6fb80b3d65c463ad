"""Residual blocks: plain convolutions, and EViT-GLU (linear attention with a gated convolution)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.nn.activations import ACTIVATIONS
from dcae_core.nn.attention import ReLULinearAttention
from dcae_core.nn.norms import RMSNorm2d, build_norm

GLU_EXPANSION = 4


class ResBlock(nn.Module):
    """x + norm(conv(act(conv(x)))) with two 3x3 convolutions.

    Args:
        channels: C of input and output.
        norm: "rms_norm" or "batch_norm".
        act: "relu" or "silu".
    """

    def __init__(self, channels: int, norm: str, act: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = ACTIVATIONS[act]()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = build_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.norm(self.conv2(self.act(self.conv1(x))))


class GatedMBConv(nn.Module):
    """Inverted bottleneck with a gated depthwise convolution, expansion 4.

    Source: "GLUMBConv" of the published implementation (efficientvit/models/nn/ops.py).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = GLU_EXPANSION * channels
        self.expand = nn.Conv2d(channels, 2 * hidden, 1)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = RMSNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        value, gate = self.depthwise(F.silu(self.expand(x))).chunk(2, dim=1)
        return self.norm(self.project(value * F.silu(gate)))


class EViTGLUBlock(nn.Module):
    """Linear attention, then a gated convolution, each with an identity shortcut.

    Source: DC-AE (arXiv 2410.10733), section 4.1 ("EfficientViT block").
    """

    def __init__(self, channels: int, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = ReLULinearAttention(channels, scales)
        self.mlp = GatedMBConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.attention(x)
        return x + self.mlp(x)


def build_block(kind: str, channels: int, norm: str, act: str, scales: tuple[int, ...]) -> nn.Module:
    """The residual block named in a configuration: "res" or "evit_glu" (which has its own norms and activations)."""
    if kind == "res":
        return ResBlock(channels, norm, act)
    if kind == "evit_glu":
        return EViTGLUBlock(channels, scales)
    raise AssertionError(f"unchecked block {kind!r}")
