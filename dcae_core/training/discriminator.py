"""The PatchGAN discriminator: judges overlapping patches, not the whole picture."""

from torch import Tensor, nn

_MAX_GROWTH = 8


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions, each twice as wide up to eight times `width`, then one logit per patch.

    Args:
        width: channels of the first layer.
        num_layers: strided layers; 3 judge patches of 70x70 pixels.
        norm: of the inner layers: "batch", "group" (8 channels or fewer a group) or "none".

    Source: Isola et al. 2017 (arXiv 1611.07004), section 6.1.2; weights drawn as in the published code.
    """

    def __init__(self, width: int = 64, num_layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, num_layers + 1):
            wider = width * min(2**layer, _MAX_GROWTH)
            stride = 2 if layer < num_layers else 1
            layers.append(nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=norm != "batch"))
            layers += [_build_norm(norm, wider), nn.LeakyReLU(0.2)]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_draw_weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w), one per patch; large for real."""
        return self.layers(x)


def smallest_side(num_layers: int) -> int:
    """The least side, in pixels, that leaves the discriminator one patch to judge."""
    side = 1
    for stride in (1, 1, *(2,) * num_layers):
        side = (side - 1) * stride + 2
    return side


def _build_norm(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    return nn.Identity()


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
