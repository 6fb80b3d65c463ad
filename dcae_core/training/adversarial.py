"""The PatchGAN discriminator, its losses and its side of training."""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.recipes.train_ae import AdversarialSettings
from dcae_core.training.losses import adaptive_weight
from dcae_core.training.optimisers import build_trained_network
from dcae_core.training.parallel import replicate, synchronise_batch_norm

_MAX_GROWTH = 8


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions, each twice as wide up to eight times `width`, then one logit per patch.

    Three strided layers judge patches of 70x70 pixels. `norm`, of the inner layers: "batch", "group" (8 channels or
    fewer a group) or "none".

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


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean(relu(1 - real)) + mean(relu(1 + fake))) / 2, of logits of any shape, as a scalar.

    Source: Lim and Ye 2017 (arXiv 1705.02894); halved as in VQGAN (taming-transformers `vqperceptual.py`).
    """
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean(fake), of logits of any shape, as a scalar."""
    return -fake.mean()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """Half the squared gradient of the discriminator's logits at real images (B, 3, H, W), averaged, as a scalar.

    `real` requires gradients. Source: Mescheder et al. 2018 (arXiv 1801.04406), equation 9.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()


DISCRIMINATOR = "discriminator"


class AdversarialTerm:
    """A PatchGAN discriminator with its optimiser; gradients are averaged over processes for `module`."""

    def __init__(self, settings: AdversarialSettings, steps: int, seed: tuple[int, ...], device: torch.device) -> None:
        self.settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repr(seed).encode()))
            shape = settings.discriminator
            self._network = PatchDiscriminator(shape.width, shape.num_layers, shape.norm).to(device)
        synchronise_batch_norm(self._network, device)
        self.trained = build_trained_network(self._network, settings.optimiser, steps)
        self.module = replicate(self._network)

    def fooling_loss(self, reconstructions: Tensor) -> Tensor:
        """How far reconstructions (B, 3, H, W) are from being taken for real; gradients reach them alone."""
        self._network.requires_grad_(False)
        try:
            return hinge_generator_loss(self._network(reconstructions).float())
        finally:
            self._network.requires_grad_(True)

    def weight(self, reconstruction_loss: Tensor, fooling_loss: Tensor, last_layer: Tensor) -> Tensor:
        """How much `fooling_loss` counts. With several processes each follows its own gradients."""
        factor = torch.ones((), device=fooling_loss.device)
        if self.settings.adaptive:
            factor = adaptive_weight(reconstruction_loss, fooling_loss, last_layer)
        return self.settings.weight * factor

    def discriminating_loss(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How badly images and reconstructions, both (B, 3, H, W), are told apart, and its parts for the log."""
        if self.settings.r1 > 0:
            images = images.detach().requires_grad_(True)
        real = self.module(images).float()
        fake = self.module(reconstructions).float()
        value = hinge_discriminator_loss(real, fake)
        terms = {
            "discriminator": value.detach(),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
        }
        if self.settings.r1 > 0:
            penalty = r1_penalty(real, images)
            value = value + self.settings.r1 * penalty
            terms["r1"] = penalty.detach()
        return value, terms
