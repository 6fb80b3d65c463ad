"""DiT: a transformer conditioned through its norms (adaLN-Zero; arXiv 2212.09748). Architecture only."""

import torch
from torch import Tensor, nn

from dcae_core.models.configs import DiTConfig
from dcae_core.models.denoiser import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    per_sample,
    timestep_embedding,
    unpatchify,
)

TIME_EMBEDDING_WIDTH = 256


class TimestepEmbedder(nn.Module):
    """Sinusoidal embedding of the time, then two linear layers."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        first, second = nn.Linear(TIME_EMBEDDING_WIDTH, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, hidden_size)."""
        weight = next(self.mlp.parameters())
        return self.mlp(timestep_embedding(t, TIME_EMBEDDING_WIDTH).to(weight.dtype))


class Block(nn.Module):
    """Transformer block whose norms are shifted, scaled and gated by the condition."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, config.num_heads, qkv_bias=True, qk_norm=config.qk_norm)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, hidden_size), (B, hidden_size) -> (B, N, hidden_size)."""
        modulation = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        x = x + gate_attn * self.attn(_modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Modulated norm, then the projection to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, hidden_size), (B, hidden_size) -> (B, N, patch_size^2 * out_channels)."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Predicts noise, and with it where the variance lies in its range, from a noisy latent, a time and a class.

    The positions are a fixed sine-cosine table; it is in the state dict, as published, but is not a parameter.

    Source: facebookresearch/DiT `models.py`.
    """

    pos_embed: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.register_buffer("pos_embed", _sine_cosine_table(config.grid, width))
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        if config.num_classes:
            self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: Xavier for linear layers and patches, normal 0.02 for the embeddings, zero gates and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        nn.init.zeros_(self.x_embedder.proj.get_parameter("bias"))
        if self.config.num_classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for name in ("mlp.0.weight", "mlp.2.weight"):
            nn.init.normal_(self.t_embedder.get_parameter(name), std=0.02)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[-1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """One evaluation.

        Args:
            x: scaled noisy latent (B, C, H, W) of the configured size.
            t: network time, 0-d or (B,), in 0..999.
            y: classes (B,), integers in 0..num_classes; None only where the network is unconditional.

        Returns:
            (B, 2C, H, W) with a learned variance, noise first; (B, C, H, W) without.

        Raises:
            UsageError: the latent does not have the configured shape.
        """
        self.config.require_latent(x.shape)
        tokens = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(per_sample(t, x.shape[0]))
        if self.config.num_classes:
            assert y is not None, "a class-conditional network needs classes"
            condition = condition + self.y_embedder(y)
        for block in self.blocks:
            tokens = block(tokens, condition)
        patches = self.final_layer(tokens, condition)
        return unpatchify(patches, self.config.grid, self.config.patch_size)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _sine_cosine_table(grid: tuple[int, int], width: int) -> Tensor:
    """(1, rows * columns, width): the first half of the channels tells the column, the second the row."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = [position.reshape(-1, 1) * frequencies for position in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()[None]
