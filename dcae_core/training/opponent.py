"""The discriminator as a player: what it learns from, and how it judges the autoencoder."""

import zlib

import torch
from torch import Tensor

from dcae_core.recipes.train_ae import AdversarialSettings
from dcae_core.training.discriminator import PatchDiscriminator
from dcae_core.training.losses.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
)
from dcae_core.training.parallel import replicate, synchronise_batch_norm
from dcae_core.training.players import build_player

DISCRIMINATOR = "discriminator"


class Opponent:
    """A PatchGAN discriminator with its optimiser.

    Args:
        settings: of the GAN term.
        steps: of the phase.
        seed: numbers that its first weights follow from.
        device: where it trains.

    Attributes:
        player: for the loop.
        module: what gradients are averaged over processes for.
    """

    def __init__(self, settings: AdversarialSettings, steps: int, seed: tuple[int, ...], device: torch.device) -> None:
        self.settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repr(seed).encode()))
            shape = settings.discriminator
            self._network = PatchDiscriminator(shape.width, shape.num_layers, shape.norm).to(device)
        synchronise_batch_norm(self._network, device)
        self.player = build_player(self._network, settings.optimiser, steps)
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

    def discriminating_loss(self, pictures: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How badly pictures and reconstructions, both (B, 3, H, W), are told apart, and its parts for the log."""
        if self.settings.r1 > 0:
            pictures = pictures.detach().requires_grad_(True)
        real = self.module(pictures).float()
        fake = self.module(reconstructions).float()
        value = hinge_discriminator_loss(real, fake)
        terms = {
            "discriminator": value.detach(),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
        }
        if self.settings.r1 > 0:
            penalty = r1_penalty(real, pictures)
            value = value + self.settings.r1 * penalty
            terms["r1"] = penalty.detach()
        return value, terms
