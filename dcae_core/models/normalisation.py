"""Latents channel by channel: what a network sees where one factor for all of them will not do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dcae_core.errors import UsageError


@dataclass(frozen=True)
class ChannelNormalisation:
    """(z - mean) / std, with a mean and a standard deviation for each channel.

    Attributes:
        mean: of unscaled latents, (C,).
        std: likewise, each above 0.

    Source: LightningDiT (arXiv 2501.01423), which trains on latents so normalised by default.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UsageError(f"{len(self.mean)} channel means, but {len(self.std)} standard deviations")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise UsageError("a channel's mean or standard deviation is not finite")
        if any(std <= 0 for std in self.std):
            channel = next(index for index, std in enumerate(self.std) if std <= 0)
            raise UsageError(f"channel {channel} has a standard deviation of {self.std[channel]:g}: it never varies")

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> Self:
        """From any sequences of numbers.

        Raises:
            UsageError: numbers that nothing can be divided by, or not as many of one as of the other.
        """
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def to_dict(self) -> dict[str, list[float]]:
        """For JSON."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def apply(self, z: Tensor) -> Tensor:
        """Unscaled latents (..., C, h, w) -> what the network sees."""
        mean, std = self._shaped(z)
        return (z - mean) / std

    def undo(self, x: Tensor) -> Tensor:
        """What the network sees -> unscaled latents, the same shape."""
        mean, std = self._shaped(x)
        return x * std + mean

    def _shaped(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(c, 1, 1) each; where a latent has its leading channels alone, theirs."""
        channels = z.shape[-3]
        assert channels <= len(self.mean)
        mean, std = (
            torch.tensor(values[:channels], dtype=z.dtype, device=z.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return mean, std
