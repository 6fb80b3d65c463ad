"""The half of CLIP that sees (arXiv 2103.00020): images to embeddings. Architecture only."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError
from dcae_core.models.config_values import MAX_BLOCKS, MAX_CHANNELS, require_choice, require_count

_MAX_SIDE = 1 << 12  # pixels
_FIXED = {"num_channels": 3, "hidden_act": "quick_gelu"}
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipVisionConfig:
    """What the sizes of the family differ in; the defaults are those of ViT-L/14 for images of 336 pixels.

    Attributes:
        hidden_size: width of a token, a multiple of `num_attention_heads`.
        intermediate_size: width inside a block's MLP.
        projection_dim: width of an embedding.
        num_hidden_layers: transformer blocks.
        patch_size: side in pixels of what makes one token.
        image_size: side in pixels of the images.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    projection_dim: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int = 14
    image_size: int = 336

    def __post_init__(self) -> None:
        """UsageError where no network can be built."""
        for name in ("hidden_size", "intermediate_size", "projection_dim"):
            require_count(name, getattr(self, name), 1, MAX_CHANNELS)
        require_count("num_hidden_layers", self.num_hidden_layers, 1, MAX_BLOCKS)
        require_count("num_attention_heads", self.num_attention_heads, 1, self.hidden_size)
        require_count("patch_size", self.patch_size, 1, _MAX_SIDE)
        require_count("image_size", self.image_size, self.patch_size, _MAX_SIDE)
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(f"hidden_size: {self.num_attention_heads} heads do not divide {self.hidden_size}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClipVisionConfig":
        """From a `config.json` of transformers; UsageError where that describes another kind of network."""
        require_choice("model_type", values.get("model_type"), ("clip",))
        vision = values.get("vision_config")
        if not isinstance(vision, dict):
            raise UsageError("vision_config: there is none")
        for name, only in _FIXED.items():
            require_choice(f"vision_config.{name}", vision.get(name, only), (only,))
        own = {name: vision[name] for name in cls.__dataclass_fields__ if name in vision}
        return cls(**own | ({"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}))


class _Embeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        width, num_patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + num_patches, width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        width, self._num_heads = config.hidden_size, config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class _Block(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.self_attn, self.mlp = _Attention(config), _Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Transformer(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size)  # so called in the files
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))})
        self.post_layernorm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.pre_layrnorm(self.embeddings(x))
        for block in self.encoder["layers"].children():
            tokens = block(tokens)
        return self.post_layernorm(tokens[:, 0])


class ClipVision(nn.Module):
    """Embeddings of images; frozen, in evaluation mode. Parameters are called as in the files of transformers.

    Source: openai/CLIP; transformers `CLIPVisionModelWithProjection`.
    """

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _Transformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, image_size, image_size) in [0, 1] -> embeddings (B, projection_dim), not normalised."""
        mean, std = x.new_tensor(_MEAN).view(3, 1, 1), x.new_tensor(_STD).view(3, 1, 1)
        return self.visual_projection(self.vision_model((x - mean) / std))
