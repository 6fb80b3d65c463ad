"""Learned perceptual image patch similarity: a distance between deep features, as metric and as training loss."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.errors import unknown_name
from dcae_core.metrics.torchvision_networks import convolutions_of
from dcae_core.weights import (
    ALEXNET,
    LPIPS_ALEXNET_HEADS,
    LPIPS_VGG16_HEADS,
    VGG16,
    fetch_published_weights,
    load_strictly,
    read_weights,
)

# ImageNet's mean and standard deviation, expressed for inputs in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_NORM_EPS = 1e-8


# backbone -> (torchvision's name, the layers whose outputs are compared, their widths, weights, the heads' weights).
_BACKBONES = {
    "alex": ("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), ALEXNET, LPIPS_ALEXNET_HEADS),
    "vgg": ("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), VGG16, LPIPS_VGG16_HEADS),
}


def _unit_length(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + _NORM_EPS)


class LPIPS(nn.Module):
    """LPIPS v0.1 with random weights (`load_lpips` gives the published ones); always frozen and in evaluation mode.

    The backbone is "alex" (the metric) or "vgg" (the usual loss). Gradients flow to both inputs, so the same module
    serves as a perceptual loss. Memory for a loss is dominated by the backbone's activations: for VGG about 0.5 GB per
    512x512 image in float32.

    Source: Zhang et al. 2018; normalisation of features as in torchmetrics functional/image/lpips.py.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str = "alex") -> None:
        super().__init__()
        if backbone not in _BACKBONES:
            raise unknown_name("LPIPS backbone", backbone, _BACKBONES)
        name, self.compared_layers, widths, _, _ = _BACKBONES[backbone]
        self.backbone = backbone
        self.features = convolutions_of(name)[: self.compared_layers[-1] + 1]
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "LPIPS":
        """Stay in evaluation mode: a metric does not change with the network it is part of."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance (B,) of each pair of images (B, 3, H, W) in [-1, 1], 0 for equal ones.

        The sides are at least 32 pixels long.
        """
        a, b = (a - self.shift) / self.scale, (b - self.shift) / self.scale
        distance = a.new_zeros(a.shape[0])
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if index in self.compared_layers:
                difference = (_unit_length(a) - _unit_length(b)).square()
                distance = distance + next(heads)(difference).mean(dim=(1, 2, 3))
        return distance


def _backbone_weights(path: Path) -> dict[str, Tensor]:
    """The feature layers of a torchvision state dict, named by their index."""
    prefix = "features."
    return {name[len(prefix) :]: w for name, w in read_weights(path).items() if name.startswith(prefix)}


def _head_weights(path: Path) -> dict[str, Tensor]:
    """The linear heads, published as `lin0.model.1.weight` and so on."""
    weights = read_weights(path)
    return {f"{name.split('.')[0].removeprefix('lin')}.weight": weight for name, weight in weights.items()}


def load_lpips(
    backbone: str = "alex",
    *,
    backbone_weights: Path | None = None,
    head_weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> LPIPS:
    """LPIPS with its published weights, downloaded once and checked, or read from local files given.

    Args:
        backbone: "alex" or "vgg".
        backbone_weights: a file with torchvision's names (`features.0.weight`, ...).
        head_weights: a file with the published heads (`lin0.model.1.weight`, ...).
        device: where the module goes.

    Raises:
        UsageError: there is no such backbone.
        ResourceError: torchvision is missing or does not fit torch.
        DownloadError: weights are not in the cache and cannot be downloaded.
        CheckpointError: a file is damaged or holds other weights.
    """
    module = LPIPS(backbone)
    *_, published, published_heads = _BACKBONES[backbone]
    backbone_file = backbone_weights or fetch_published_weights(published)
    head_file = head_weights or fetch_published_weights(published_heads)
    load_strictly(module.features, _backbone_weights(backbone_file), backbone_file)
    load_strictly(module.heads, _head_weights(head_file), head_file)
    return module.to(device)
