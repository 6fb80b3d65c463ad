"""EQ-VAE: latents that shrink and turn as their images do, and decode to just that (arXiv 2502.09509)."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcae_core.recipes.train_ae import EquivarianceSettings


@dataclass(frozen=True)
class Change:
    """What is done to the images of a step, or to their latents.

    Attributes:
        latent_side: of the latent afterwards, in positions.
        turns: of 90 degrees, counterclockwise.
        in_latent: the latent is changed, and decodes to the changed image; else the image is, before it is encoded.
    """

    latent_side: int
    turns: int
    in_latent: bool

    def of_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, h) -> (B, C, latent_side, latent_side)."""
        return shrink_and_turn(latents, self.latent_side, self.turns)

    def of_images(self, images: Tensor, ratio: int) -> Tensor:
        """(B, 3, H, H) -> the same of the side that belongs to the latent's, `ratio` times as long."""
        return shrink_and_turn(images, self.latent_side * ratio, self.turns)


def shrink_and_turn(x: Tensor, side: int, turns: int) -> Tensor:
    """(B, C, H, H), bilinear, to (B, C, side, side), then counterclockwise by `turns` times 90 degrees."""
    if side != x.shape[-1]:
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return torch.rot90(x, turns, dims=(-2, -1))


def smallest_latent_side(latent_side: int, settings: EquivarianceSettings) -> int:
    """In positions, of a latent that is shrunk as far as it may be."""
    return max(1, ceil(latent_side * settings.min_scale))


def choose_change(settings: EquivarianceSettings, latent_side: int, random: np.random.Generator) -> Change | None:
    """What one step does, with `latent_side` positions of the latents before; None leaves all as it is.

    With `probability` the latents are shrunk and turned by 90, 180 or 270 degrees; else, with `smaller_images`, the
    images are shrunk alone, so that the autoencoder stays good at small ones. A latent's side becomes any whole number
    from `min_scale` of it up to one less than it was.

    Source: zelaki/eqvae `ldm/models/autoencoder.py`, where scales are k / 32 of a latent of 32 positions.
    """
    smaller = range(smallest_latent_side(latent_side, settings), latent_side)
    side = int(random.choice(smaller)) if smaller else latent_side
    if random.random() < settings.probability:
        return Change(side, int(random.integers(1, 4)), in_latent=True)
    if smaller and random.random() < settings.smaller_images:
        return Change(side, 0, in_latent=False)
    return None
