"""Layers that the autoencoders are built from: norms, resampling with residual shortcuts, linear attention, blocks."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import DataError
from dcae_core.models.configs import HEAD_CHANNELS

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
NORM_EPS = 1e-5
FACTOR = 2  # of one change of resolution
DENOMINATOR_EPS = 1e-15
GLU_EXPANSION = 4


class RMSNorm2d(nn.Module):
    """Root-mean-square norm over the channels of each position of (B, C, H, W), with weight and bias.

    The statistic is computed in float32 whatever the dtype of the input, the result returned in that dtype.
    Source: "trms2d" of the published implementation (efficientvit/models/nn/norm.py).
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


def average_channels(x: Tensor, channels: int) -> Tensor:
    """Mean over groups of consecutive channels: (B, k * channels, H, W) -> (B, channels, H, W)."""
    return x if x.shape[1] == channels else x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """Each channel repeated in place: (B, channels / k, H, W) -> (B, channels, H, W)."""
    return x if x.shape[1] == channels else x.repeat_interleave(channels // x.shape[1], dim=1)


class Downsample(nn.Module):
    """(B, in, H, W) -> (B, out, H/2, W/2).

    Args:
        in_channels: of the input.
        out_channels: of the output; with the shortcut, 4 * in_channels must be a multiple of it.
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


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    # The meta device, where networks are counted, has no autocast to switch off.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class ScaleAggregation(nn.Module):
    """One more scale of q, k and v: a depthwise k x k convolution, then a 1x1 convolution within each head.

    Source: "aggreg" of LiteMLA in the published implementation (efficientvit/models/nn/ops.py).
    """

    def __init__(self, qkv_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            qkv_channels, qkv_channels, kernel_size, padding=kernel_size // 2, groups=qkv_channels, bias=False
        )
        self.pointwise = nn.Conv2d(qkv_channels, qkv_channels, 1, groups=qkv_channels // HEAD_CHANNELS, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, 3C, H, W) to the same shape."""
        return self.pointwise(self.depthwise(qkv))


class ReLULinearAttention(nn.Module):
    """Attention with ReLU kernels, linear in the number of positions; heads are 32 channels wide.

    For each position p, out_p = (sum_i v_i k_i^T) q_p / (sum_i k_i . q_p + 1e-15) with q and k after a ReLU. The
    sums run in float32 whatever the dtype of the input, since they grow with the number of positions. The published
    code switches to the quadratic form of the same product on maps of at most 32 positions; here one form serves.
    Source: EfficientViT (arXiv 2205.14756), section 3.1; DC-AE (arXiv 2410.10733), section 4.1.

    Args:
        channels: C of input and output, a multiple of 32.
        scales: kernel sizes of further scales of q, k, v (the Sana autoencoders have one, 5).
    """

    def __init__(self, channels: int, scales: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.scales = nn.ModuleList(ScaleAggregation(3 * channels, kernel_size) for kernel_size in scales)
        self.proj = nn.Conv2d((1 + len(scales)) * channels, channels, 1, bias=False)
        self.norm = RMSNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; memory and time grow with H * W."""
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], dim=1)
        with _without_autocast(x):
            attended = self._attend(qkv.float())
        return self.norm(self.proj(attended.to(qkv.dtype)))

    @staticmethod
    def _attend(qkv: Tensor) -> Tensor:
        height, width = qkv.shape[-2:]
        q, k, v = qkv.flatten(2).unflatten(1, (-1, 3 * HEAD_CHANNELS)).chunk(3, dim=2)
        q, k = F.relu(q), F.relu(k)
        numerator = (v @ k.transpose(-1, -2)) @ q
        denominator = k.sum(dim=-1).unsqueeze(-2) @ q
        return (numerator / (denominator + DENOMINATOR_EPS)).flatten(1, 2).unflatten(2, (height, width))


class ResBlock(nn.Module):
    """x + norm(conv(act(conv(x)))) with two 3x3 convolutions.

    `norm` is "rms_norm" or "batch_norm", `act` "relu" or "silu".
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


_LARGEST_VALUE = 10.0  # of an image in [-1, 1], far beyond what resampling overshoots, far below 255


def check_image_values(x: Tensor) -> None:
    """Refuse images as files hold them; on a GPU by their type alone, as looking at values would wait for its queue.

    Raises:
        DataError: they are no floating-point numbers, or far outside [-1, 1].
    """
    found = str(x.dtype)
    if x.is_floating_point():
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not bool((x.abs() > _LARGEST_VALUE).any()):
            return
        found = f"{float(x.min()):.4g} to {float(x.max()):.4g}"
    raise DataError(f"the encoder takes float images in [-1, 1], not {found}; bring 0..255 there by x / 127.5 - 1")
