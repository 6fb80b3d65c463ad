"""Halving and doubling the resolution with non-parametric residual shortcuts.

Source: DC-AE (arXiv 2410.10733), section 3.2, "Residual Autoencoding": the layer learns only what
space-to-channel and channel-to-space rearrangement, with channel averaging or repetition, leave to be learned.
"""

import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 2


def average_channels(x: Tensor, channels: int) -> Tensor:
    """Mean over groups of consecutive channels: (B, k * channels, H, W) -> (B, channels, H, W)."""
    return x if x.shape[1] == channels else x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """Each channel repeated in place: (B, channels / k, H, W) -> (B, channels, H, W)."""
    return x if x.shape[1] == channels else x.repeat_interleave(channels // x.shape[1], dim=1)


class Downsample(nn.Module):
    """(B, in, H, W) -> (B, out, H/2, W/2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; with the shortcut, 4 * in_channels must be a multiple of it.
        kind: "pixel_unshuffle" (3x3 convolution to out/4 channels, then space to channel) or "conv"
            (3x3 convolution of stride 2).
        shortcut: add space-to-channel of the input, averaged over groups of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str, shortcut: bool) -> None:
        super().__init__()
        self.unshuffle = kind == "pixel_unshuffle"
        self.out_channels = out_channels
        self.shortcut = shortcut
        if self.unshuffle:
            self.conv = nn.Conv2d(in_channels, out_channels // FACTOR**2, 3, padding=1)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=FACTOR, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width, which must be even."""
        y = self.conv(x)
        if self.unshuffle:
            y = F.pixel_unshuffle(y, FACTOR)
        if self.shortcut:
            y = y + average_channels(F.pixel_unshuffle(x, FACTOR), self.out_channels)
        return y


class Upsample(nn.Module):
    """(B, in, H, W) -> (B, out, 2H, 2W).

    Args:
        in_channels: channels of the input; with the shortcut, 4 * out_channels must be a multiple of it.
        out_channels: channels of the output.
        kind: "pixel_shuffle" (3x3 convolution to 4 * out channels, then channel to space) or "interpolate"
            (nearest neighbour, then a 3x3 convolution).
        shortcut: add channel-to-space of the input, each channel repeated.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str, shortcut: bool) -> None:
        super().__init__()
        self.shuffle = kind == "pixel_shuffle"
        self.out_channels = out_channels
        self.shortcut = shortcut
        self.conv = nn.Conv2d(in_channels, out_channels * (FACTOR**2 if self.shuffle else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Double height and width."""
        if self.shuffle:
            y = F.pixel_shuffle(self.conv(x), FACTOR)
        else:
            y = self.conv(F.interpolate(x, scale_factor=FACTOR, mode="nearest"))
        if self.shortcut:
            y = y + F.pixel_shuffle(repeat_channels(x, self.out_channels * FACTOR**2), FACTOR)
        return y
