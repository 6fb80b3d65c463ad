"""Moments of latents, added up the same way for stored datasets, evaluations and trained autoencoders."""

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class LatentStatistics(BaseModel):
    """Moments of unscaled latents, per channel, over all items and positions: (C,) lists, as manifests hold them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channel_mean: list[float]
    channel_mean_square: list[float]

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return _mean(self.channel_mean)

    @property
    def rms(self) -> float:
        """Root mean square of all values."""
        return math.sqrt(_mean(self.channel_mean_square))

    @property
    def scaling_factor(self) -> float:
        """1 / rms: what latents are multiplied by before a diffusion model; 1 where every latent is zero."""
        return 1.0 / self.rms if self.rms > 0 else 1.0

    @property
    def std(self) -> float:
        """Standard deviation of all values."""
        return math.sqrt(max(_mean(self.channel_mean_square) - self.mean**2, 0.0))

    @property
    def channel_std(self) -> list[float]:
        """Standard deviation of each channel."""
        pairs = zip(self.channel_mean, self.channel_mean_square, strict=True)
        return [math.sqrt(max(square - mean * mean, 0.0)) for mean, square in pairs]

    def to_dict(self) -> dict[str, float | list[float]]:
        """What reports show, for JSON."""
        return {name: getattr(self, name) for name in ("mean", "rms", "std", "channel_mean", "channel_std")}


def _mean(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()


class LatentMoments:
    """Adds latents up in float64."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 1, dtype=torch.float64)
        self._positions = 0

    def update(self, latents: Tensor) -> None:
        """Add latents (B, C, h, w), of any number type, on any device; costs a copy of one channel."""
        sums = [(values.sum(), values.square().sum()) for values in (channel.double() for channel in latents.unbind(1))]
        added, squares = torch.tensor(sums, dtype=torch.float64).T
        self.add(added, squares, latents[:, 0].numel())

    def add(self, sums: Tensor, square_sums: Tensor, num_positions: int) -> None:
        """Add sums of values and of squares of each channel, float64 (C,), over some positions."""
        self._sums = self._sums + torch.stack([sums, square_sums])
        self._positions += num_positions

    def result(self) -> LatentStatistics | None:
        """The moments of everything so far; None where that is nothing."""
        if self._positions == 0:
            return None
        means, squares = (self._sums / self._positions).tolist()
        return LatentStatistics(channel_mean=means, channel_mean_square=squares)


def merge_statistics(parts: list[tuple[int, LatentStatistics]]) -> LatentStatistics | None:
    """Combine statistics of disjoint sets of items, given as (count, statistics), in the order given."""
    total = sum(count for count, _ in parts)
    if total == 0:
        return None

    def weighted(columns: list[list[float]]) -> list[float]:
        weights = [count for count, _ in parts]
        return [
            math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
            for values in zip(*columns, strict=True)
        ]

    return LatentStatistics(
        channel_mean=weighted([part.channel_mean for _, part in parts]),
        channel_mean_square=weighted([part.channel_mean_square for _, part in parts]),
    )
