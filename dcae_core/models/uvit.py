"""U-ViT: a transformer whose later blocks see the earlier ones' outputs (arXiv 2209.12152). Architecture only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.models.configs import UViTConfig
from dcae_core.models.denoiser import (
    Attention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    per_sample,
    timestep_embedding,
    unpatchify,
)


class Block(nn.Module):
    """Pre-norm transformer block; with `skip`, its input is first mixed with that of its mirror block."""

    def __init__(self, config: UViTConfig, *, skip: bool = False) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(
            width, config.num_heads, qkv_bias=False, float32=config.attention_float32, qk_norm=config.qk_norm
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, nn.GELU())
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(B, N, hidden_size), and the mirror block's output of the same shape -> (B, N, hidden_size)."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """Predicts noise or velocity from a noisy latent, a time and a class.

    Tokens are [class, time, patches], with a learned table of positions. The time embedding has no network of its own.

    Source: arXiv 2209.12152; mit-han-lab/efficientvit `efficientvit/diffusioncore/models/uvit.py`; adaptive channels:
    DC-AE 1.5 (arXiv 2508.00413) and DC-Gen.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        width, (rows, columns) = config.hidden_size, config.grid
        self.num_extra_tokens = 2 if config.num_classes else 1
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_extra_tokens + rows * columns, width))
        self.patch_embed = PatchEmbed(config.patch_size, config.in_channels, width)
        if config.num_classes:
            self.label_emb = LabelEmbedder(config.num_classes, width)
        self.in_blocks = nn.ModuleList(Block(config) for _ in range(config.depth // 2))
        self.mid_block = Block(config)
        self.out_blocks = nn.ModuleList(Block(config, skip=True) for _ in range(config.depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of deviation 0.02 for linear layers and positions, zero biases; the rest is PyTorch's."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """One evaluation.

        Args:
            x: scaled noisy latent (B, C, H, W) of the configured size, with adaptive channels of its leading ones.
            t: network time, 0-d or (B,): 1..1000 for noise prediction, 0..1 for velocity.
            y: classes (B,), integers in 0..num_classes; None only where the network is unconditional.

        Returns:
            The prediction (B, C, H, W).

        Raises:
            UsageError: the latent does not have the configured shape.
        """
        self.config.require_latent(x.shape)
        tokens = self.patch_embed(x)
        time = timestep_embedding(per_sample(t, x.shape[0]), self.config.hidden_size).to(tokens.dtype)
        extra = [time]
        if self.config.num_classes:
            assert y is not None, "a class-conditional network needs classes"
            extra.insert(0, self.label_emb(y))
        tokens = torch.cat([torch.stack(extra, dim=1), tokens], dim=1) + self.pos_embed

        skips = []
        for block in self.in_blocks:
            tokens = block(tokens)
            skips.append(tokens)
        tokens = self.mid_block(tokens)
        for block in self.out_blocks:
            tokens = block(tokens, skips.pop())

        patches = self._predict(self.norm(tokens), x.shape[1])[:, self.num_extra_tokens :]
        return unpatchify(patches, self.config.grid, self.config.patch_size)

    def _predict(self, tokens: Tensor, channels: int) -> Tensor:
        """(B, N, hidden_size) -> (B, N, patch_size^2 * channels): the output layer, or its leading channels."""
        if channels == self.config.in_channels:
            return self.decoder_pred(tokens)
        by_channel = (self.config.patch_size**2, self.config.in_channels)
        weight = self.decoder_pred.weight.unflatten(0, by_channel)[:, :channels].flatten(0, 1)
        return F.linear(tokens, weight, self.decoder_pred.bias.unflatten(0, by_channel)[:, :channels].flatten())
