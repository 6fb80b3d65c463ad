"""What the diffusion networks share: their configuration, which can be checked and saved, and transformer layers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError, unknown_name
from dcae_core.models.config_values import MAX_BLOCKS, MAX_CHANNELS, require_choice, require_count, require_size

_MAX_CLASSES, _MAX_SIDE = 1 << 20, 1 << 20


@dataclass(frozen=True)
class DenoiserConfig:
    """What every network of the form `forward(x, t, y)` is described by.

    Attributes:
        input_size: height and width of the latent; one number stands for a square.
        patch_size: side of the square of latent positions that makes one token; divides both sides.
        in_channels: channels of the latent.
        hidden_size: width of a token, a multiple of `num_heads`.
        depth: number of transformer blocks.
        num_heads: attention heads.
        num_classes: classes 0..num_classes-1; class `num_classes` is the null class. 0: unconditional.
        qk_norm: RMS norm of queries and keys in each head, which keeps attention's logits from growing in long or
            half-precision trainings (arXiv 2302.05442); none of the released networks has it.
    """

    architecture: ClassVar[str]

    input_size: int | tuple[int, int] = 16
    patch_size: int = 1
    in_channels: int = 32
    hidden_size: int = 512
    depth: int = 12
    num_heads: int = 8
    num_classes: int = 1000
    qk_norm: bool = False

    def __post_init__(self) -> None:
        limits = {"patch_size": MAX_CHANNELS, "in_channels": MAX_CHANNELS, "hidden_size": MAX_CHANNELS}
        for name, limit in (limits | {"depth": MAX_BLOCKS, "num_heads": MAX_CHANNELS}).items():
            require_count(f"{self.architecture} {name}", getattr(self, name), 1, limit)
        require_count(f"{self.architecture} num_classes (0: unconditional)", self.num_classes, 0, _MAX_CLASSES)
        self._check_input_size()
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                require_choice(f"{self.architecture} {field.name}", getattr(self, field.name), (True, False))
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UsageError(
                f"{self.architecture} hidden_size {self.hidden_size} must be a multiple of 4 "
                f"and of num_heads {self.num_heads}"
            )
        if any(side % self.patch_size for side in self.latent_size):
            raise UsageError(
                f"{self.architecture} input_size {self.input_size} must be a multiple of patch_size {self.patch_size}"
            )

        self._check_size()

    def _check_size(self) -> None:
        """From above: attention and MLP of every block, the table of classes, patches in and out."""
        width, patch = self.hidden_size, self.patch_size**2 * self.in_channels
        weights = self.depth * 24 * width**2 + (self.num_classes + 1) * width + 3 * patch * width
        require_size(f"the {self.architecture}", self.depth, weights)

    def _check_input_size(self) -> None:
        size = self.input_size
        if isinstance(size, tuple) and len(size) != 2:
            raise UsageError(f"{self.architecture} input_size is one number or (height, width), not {size}")
        for side in size if isinstance(size, tuple) else (size,):
            require_count(f"{self.architecture} input_size", side, 1, _MAX_SIDE)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latent."""
        size = self.input_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        height, width = self.latent_size
        return height // self.patch_size, width // self.patch_size

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.in_channels

    def takes_channels(self, channels: int) -> bool:
        """Whether latents may have so many channels."""
        return channels == self.in_channels

    def require_latent(self, shape: Sequence[int]) -> None:
        """Refuse, with UsageError, latents whose shape is not (B, in_channels, *latent_size)."""
        channels, height, width = self.in_channels, *self.latent_size
        if len(shape) == 4 and self.takes_channels(shape[1]):
            channels = shape[1]
        if len(shape) != 4 or tuple(shape[1:]) != (channels, height, width):
            raise UsageError(
                f"this {self.architecture} takes latents (B, {channels}, {height}, {width}), not {tuple(shape)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `architecture` among them; `denoisers.denoiser_config` reads them back."""
        return {"architecture": self.architecture} | dataclasses.asdict(self)

    def replace(self, **overrides: Any) -> Self:
        """The same configuration with some fields changed.

        UsageError at an unknown field, or values that no network can be built from.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in fields:
                raise unknown_name(f"{self.architecture} setting", name, fields)
        if isinstance(overrides.get("input_size"), list):
            overrides["input_size"] = tuple(overrides["input_size"])
        return dataclasses.replace(self, **overrides)


def timestep_embedding(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding (B, width) of times (B,), cosines first, in float32 (float64 for float64 times).

    Times may have any magnitude, fractional or not; the width is even; the longest wave has a period of 2 pi times
    `max_period`.

    Source: openai/glide-text2im `nn.py`, as used by U-ViT and DiT.
    """
    t = t if t.is_floating_point() and t.dtype != torch.bfloat16 and t.dtype != torch.float16 else t.float()
    half = width // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / half
    angles = t[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def per_sample(t: Tensor, batch_size: int) -> Tensor:
    """One time for the whole batch (0-d) or one per sample (B,) -> (B,)."""
    return t.expand(batch_size) if t.dim() == 0 else t


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Tokens (B, h * w, patch_size * patch_size * C) of a grid (h, w) -> (B, C, h * patch_size, w * patch_size).

    Inside a token the channel runs fastest.
    """
    h, w = grid
    pixels = tokens.unflatten(1, (h, w)).unflatten(-1, (patch_size, patch_size, -1))  # (B, h, w, p, q, C)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class PatchEmbed(nn.Module):
    """Cut a latent (B, C, H, W) into patches and project each to a token: (B, H * W / patch_size^2, hidden_size)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, hidden_size), row by row; fewer channels than it has are the leading ones."""
        if (channels := x.shape[1]) == self.proj.in_channels:
            patches = self.proj(x)
        else:
            patches = F.conv2d(x, self.proj.weight[:, :channels], self.proj.bias, self.proj.stride)
        return patches.flatten(2).transpose(1, 2)


class LabelEmbedder(nn.Module):
    """A table of class embeddings whose last row, number `num_classes`, is the null class of guidance."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) -> (B, hidden_size)."""
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, hidden_size), a multiple of `num_heads` wide.

    With `float32`, the product runs in float32 whatever the working dtype is, as in the published UViT. Only useful to
    reproduce the published half-precision results; otherwise slower for no gain.
    With `qk_norm`, queries and keys have an RMS norm in each head, with a weight per channel.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, *, qkv_bias: bool, float32: bool = False, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.float32 = float32
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.q_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(hidden_size // num_heads, eps=1e-6) if qk_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, hidden_size) -> (B, N, hidden_size)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, head width)
        if self.float32:
            qkv = qkv.float()
        q, k, v = qkv.unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.proj(heads.transpose(1, 2).flatten(2).to(x.dtype))


class Mlp(nn.Module):
    """Two linear layers with an activation between, four times as wide inside."""

    def __init__(self, hidden_size: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.activation = activation
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., hidden_size)."""
        return self.fc2(self.activation(self.fc1(x)))
