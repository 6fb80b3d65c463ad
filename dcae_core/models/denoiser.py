"""What the diffusion networks share: embeddings of times and classes, and transformer layers."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
