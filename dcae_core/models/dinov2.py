"""DINOv2: a vision transformer trained without labels (arXiv 2304.07193), for its features. Architecture only."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError
from dcae_core.models.config_values import MAX_BLOCKS, MAX_CHANNELS, require_choice, require_count
from dcae_core.models.denoiser import Mlp

_MAX_SIDE = 1 << 12  # pixels, of a patch and of the images that it was trained on
_FIXED = {"mlp_ratio": 4, "num_channels": 3, "hidden_act": "gelu", "qkv_bias": True, "use_swiglu_ffn": False}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoV2Config:
    """What the sizes of the family differ in; the defaults are DINOv2 small's.

    Attributes:
        hidden_size: width of a token, a multiple of `num_attention_heads`.
        num_hidden_layers: transformer blocks.
        patch_size: side in pixels of what makes one token.
        image_size: side in pixels of the images that the positions were learned on.
    """

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    patch_size: int = 14
    image_size: int = 518

    def __post_init__(self) -> None:
        """UsageError where no network can be built."""
        require_count("hidden_size", self.hidden_size, 1, MAX_CHANNELS)
        require_count("num_hidden_layers", self.num_hidden_layers, 1, MAX_BLOCKS)
        require_count("num_attention_heads", self.num_attention_heads, 1, self.hidden_size)
        require_count("patch_size", self.patch_size, 1, _MAX_SIDE)
        require_count("image_size", self.image_size, self.patch_size, _MAX_SIDE)
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(f"hidden_size: {self.num_attention_heads} heads do not divide {self.hidden_size}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DinoV2Config":
        """From a `config.json` of transformers; UsageError where that describes another kind of network."""
        require_choice("model_type", values.get("model_type"), ("dinov2",))
        for name, only in _FIXED.items():
            require_choice(name, values.get(name, only), (only,))
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})


class _Embeddings(nn.Module):
    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        width, self._grid = config.hidden_size, config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of its training; unused, and part of the files
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self._grid**2, width))
        projection = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embeddings["projection"](x)
        positions = torch.cat([self.position_embeddings[:, :1], self._positions(*patches.shape[-2:])], dim=1)
        tokens = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + positions

    def _positions(self, height: int, width: int) -> Tensor:
        learned = self.position_embeddings[:, 1:]
        if (height, width) == (self._grid, self._grid):
            return learned
        grid = learned.transpose(1, 2).unflatten(2, (self._grid, self._grid))
        return F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    """The three projections lie apart in published files."""

    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        width, self._num_heads = config.hidden_size, config.num_attention_heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.attention[name](x).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        return self.output["dense"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class _Block(nn.Module):
    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention, self.mlp = _Attention(config), Mlp(width, nn.GELU())
        self.layer_scale1, self.layer_scale2 = _LayerScale(width), _LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class DinoV2(nn.Module):
    """Features of images, one vector for each patch and one for the whole; frozen, in evaluation mode.

    Parameters are called as in the files of transformers.

    Source: facebookresearch/dinov2; transformers `Dinov2Model`.
    """

    def __init__(self, config: DinoV2Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))})
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, h * patch_size, w * patch_size) in [-1, 1] -> features (B, hidden_size, h, w)."""
        height, width = (side // self.config.patch_size for side in x.shape[-2:])
        return self._tokens(x)[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    def class_features(self, x: Tensor) -> Tensor:
        """Images as above -> the class token's features (B, hidden_size), which stand for the whole image."""
        return self._tokens(x)[:, 0]

    def _tokens(self, x: Tensor) -> Tensor:
        mean, std = x.new_tensor(_MEAN).view(3, 1, 1), x.new_tensor(_STD).view(3, 1, 1)
        tokens = self.embeddings(((x + 1) / 2 - mean) / std)
        for block in self.encoder["layer"].children():
            tokens = block(tokens)
        return self.layernorm(tokens)
