"""What chance decides for each sample of diffusion training: noise, time, a dropped class, a number of channels.

It is drawn from (seed, position in the stream of samples) alone, so that it does not depend on how a batch is divided
among processes and parts, or on where a run was stopped.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.latents.loader import LatentBatch
from dcae_core.diffusion.objectives import Objective

_SAMPLE_STREAM = 1  # tells the chance of samples from that of their order


@dataclass(frozen=True)
class DiffusionBatch:
    """What one process computes on at once, on the CPU.

    Attributes:
        latents: (b, C, h, w), unscaled, in their stored dtype.
        labels: (b,) int64; the null class where the class is dropped.
        noise: (b, C, h, w) float32, standard normal.
        times: (b,) network times.
        channels: (b,) leading channels of the second loss, or None.
        names: of the samples, for messages.
        damaged: nothing; batches of pictures have such lines.
        worker_seconds: time that the reading threads spent on it.
    """

    latents: Tensor
    labels: Tensor
    noise: Tensor
    times: Tensor
    channels: Tensor | None
    names: tuple[str, ...]
    worker_seconds: float
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chance:
    """Draws for samples. About 0.1 ms a sample of 32x16x16, in the threads that read.

    Attributes:
        seed: of the run.
        objective: whose times are drawn.
        label_dropout: probability of the null class.
        num_classes: of the network; class `num_classes` is the null class. 0: there are no classes.
        channels: numbers of leading channels to choose from, or None.
    """

    seed: int
    objective: Objective
    label_dropout: float
    num_classes: int
    channels: tuple[int, ...] | None = None

    def complete(self, batch: LatentBatch) -> DiffusionBatch:
        """Add to a batch of latents what chance decides."""
        generator = torch.Generator()
        noise = torch.empty(batch.latents.shape)
        times, dropped, chosen = [], [], []
        for row, position in enumerate(batch.positions.tolist()):
            entropy = np.random.SeedSequence([self.seed, _SAMPLE_STREAM, position])
            generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            times.append(self.objective.draw_times(1, generator))
            uniform = torch.rand(2, generator=generator).tolist()
            dropped.append(uniform[0] < self.label_dropout)
            chosen.append(self.channels[int(uniform[1] * len(self.channels))] if self.channels else 0)
            torch.randn(noise[row].shape, generator=generator, out=noise[row])
        labels = torch.where(torch.tensor(dropped), self.num_classes, batch.labels)
        return DiffusionBatch(
            latents=batch.latents,
            labels=labels if self.num_classes else torch.zeros_like(labels),
            noise=noise,
            times=torch.cat(times),
            channels=torch.tensor(chosen) if self.channels else None,
            names=tuple(f"latent {item}" for item in batch.items.tolist()),
            worker_seconds=batch.seconds,
        )
