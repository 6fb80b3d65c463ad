"""Noise that belongs to a sample: a function of the seed and the sample's number, and of nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dcae_core.errors import UsageError


def sample_noise(seed: int, indices: Sequence[int], shape: Sequence[int], step: int | None = None) -> Tensor:
    """Standard normal noise of some samples of a run.

    Args:
        seed: the run's seed, 0 or more.
        indices: the samples' numbers in the run.
        shape: of one sample, (C, H, W).
        step: None for the noise a sample starts from, else the number of the step that adds fresh noise.

    Returns:
        float32 tensor (len(indices), C, H, W) on the CPU, the same whatever batch, process or device asks.

    Raises:
        UsageError: a negative seed.
    """
    if seed < 0:
        raise UsageError(f"the seed must be 0 or more, not {seed}")
    # Always three words: numpy takes [seed, index] and [seed, index, 0] for the same stream.
    draw = 0 if step is None else step + 1
    draws = [
        np.random.default_rng([seed, index, draw]).standard_normal(tuple(shape), dtype=np.float32) for index in indices
    ]
    return torch.from_numpy(np.stack(draws))
