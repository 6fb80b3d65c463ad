"""Alignment of latents with the features of a frozen vision encoder: VF loss (arXiv 2501.01423)."""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.checkpoints.vision_encoders import load_vision_encoder
from dcae_core.recipes.settings import OptimiserSettings
from dcae_core.recipes.train_ae import AlignmentSettings
from dcae_core.training.losses import adaptive_weight
from dcae_core.training.optimisers import build_trained_network
from dcae_core.training.parallel import replicate

ALIGNMENT = "alignment"
_MAX_ADAPTIVE_WEIGHT = 1e8


def marginal_cosine_loss(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """mean(relu(1 - margin - cosine)) of the vectors at each position of two (B, C, h, w), as a scalar.

    Source: marginal cosine similarity loss, arXiv 2501.01423.
    """
    return F.relu(1 - margin - F.cosine_similarity(latents, features, dim=1)).mean()


def marginal_distance_matrix_loss(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """mean(relu(|cosine of two latent vectors - cosine of the two feature vectors| - margin)), as a scalar.

    Over all pairs of positions of each image, of (B, C, h, w) and (B, D, h, w); C and D may differ.

    Source: marginal distance matrix similarity loss, arXiv 2501.01423.
    """
    return F.relu((_cosines(latents) - _cosines(features)).abs() - margin).mean()


def _cosines(x: Tensor) -> Tensor:
    vectors = F.normalize(x.flatten(2), dim=1)
    return vectors.transpose(1, 2) @ vectors


class AlignmentTerm:
    """A frozen encoder, and a linear map from latents to its features, which is trained along.

    The map has an optimiser like the autoencoder's; gradients are averaged over processes for `module`.

    Source: hustvl/LightningDiT `vavae`: both losses look at the mapped latents, with weight 1 each.
    """

    def __init__(
        self,
        settings: AlignmentSettings,
        latent_channels: int,
        optimiser: OptimiserSettings,
        steps: int,
        seed: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self.settings, self._latent_channels = settings, latent_channels
        self._encoder = load_vision_encoder(settings.model, device)
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repr((ALIGNMENT, seed)).encode()))
            projection = nn.Conv2d(latent_channels, self._encoder.config.hidden_size, 1, bias=False).to(device)
        self.trained = build_trained_network(projection, optimiser, steps)
        self.module = replicate(projection)

    def loss(self, latents: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far latents (B, c, h, w) are from the features of their images (B, 3, H, W), and its parts for the log.

        Channels that structured latents leave out are zero. Images are resized so that each latent position is a patch.
        """
        with torch.no_grad():
            side = [positions * self._encoder.config.patch_size for positions in latents.shape[-2:]]
            seen = F.interpolate(images, size=side, mode="bilinear", align_corners=False, antialias=True)
            features = self._encoder(seen).float()
        missing = self._latent_channels - latents.shape[1]
        mapped = self.module(F.pad(latents, (0, 0, 0, 0, 0, missing))).float()
        cosine = marginal_cosine_loss(mapped, features, self.settings.cosine_margin)
        distance = marginal_distance_matrix_loss(mapped, features, self.settings.distance_margin)
        return cosine + distance, {"alignment_cosine": cosine.detach(), "alignment_distance": distance.detach()}

    def weight(self, reconstruction_loss: Tensor, loss: Tensor, layer: Tensor) -> Tensor:
        """How much `loss` counts. With several processes each follows its own gradients."""
        factor = torch.ones((), device=loss.device)
        if self.settings.adaptive:
            factor = adaptive_weight(reconstruction_loss, loss, layer, _MAX_ADAPTIVE_WEIGHT)
        return self.settings.weight * factor
