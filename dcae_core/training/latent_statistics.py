"""How an autoencoder's latents are distributed, and the scaling factor that follows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcae_core.data.pictures import uint8_to_tensor
from dcae_core.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class LatentStatistics:
    """Of unscaled latents, over pictures and positions.

    Attributes:
        mean: over all values.
        rms: root of the mean square of all values.
        channel_mean: of each channel.
        channel_std: of each channel.
        num_pictures: measured on.
    """

    mean: float
    rms: float
    channel_mean: list[float]
    channel_std: list[float]
    num_pictures: int

    @property
    def scaling_factor(self) -> float:
        """1 / rms: what latents are multiplied by before a diffusion model."""
        return 1.0 / self.rms

    def to_dict(self) -> dict[str, float | int | list[float]]:
        """Plain values for JSON."""
        return {
            "mean": self.mean,
            "rms": self.rms,
            "channel_mean": self.channel_mean,
            "channel_std": self.channel_std,
            "num_pictures": self.num_pictures,
        }


@torch.no_grad()
def measure_latents(network: Autoencoder, batches: Iterable[Tensor]) -> LatentStatistics:
    """Encode pictures and sum up in float64: one batch of memory, one encoding each.

    Args:
        network: put into evaluation mode.
        batches: uint8 pictures (B, 3, H, W).
    """
    network.eval()
    device = next(network.parameters()).device
    sums = torch.zeros(2, network.latent_channels, dtype=torch.float64)
    positions = pictures = 0
    for pixels in batches:
        z = network.encode(uint8_to_tensor(pixels.to(device))).double()
        sums += torch.stack([z.sum(dim=(0, 2, 3)), z.square().sum(dim=(0, 2, 3))]).cpu()
        positions += z.shape[0] * z.shape[2] * z.shape[3]
        pictures += z.shape[0]
    mean, square = sums / positions
    return LatentStatistics(
        mean=float(mean.mean()),
        rms=math.sqrt(float(square.mean())),
        channel_mean=mean.tolist(),
        channel_std=(square - mean.square()).clamp(min=0).sqrt().tolist(),
        num_pictures=pictures,
    )
