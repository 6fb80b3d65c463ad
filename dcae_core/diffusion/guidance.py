"""Classifier-free guidance, autoguidance, and the noise that samples begin with."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dcae_core.diffusion.solvers import Model
from dcae_core.errors import UsageError

ClassModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""model(x, t, y): classes y (B,)."""


def guide(
    model: ClassModel,
    classes: Tensor,
    null_class: int,
    guidance_scale: float = 1.0,
    interval: tuple[float, float] | None = None,
    dtype: torch.dtype | None = None,
    weaker: ClassModel | None = None,
) -> Model:
    """Bind classes to a network and, with a scale other than 1, lead it away from a worse prediction.

    The worse one is its own without classes, or that of a weaker network for the same classes (autoguidance). The first
    C channels of the prediction, with C those of x, become worse + scale * (conditional - worse); further channels (a
    learned variance) are the conditional's. Without a weaker network both come from one batch, [conditional; null].

    Args:
        model: model(x, t, y) -> (B, C or more, H, W).
        classes: (B,), integers.
        null_class: the class that stands for none.
        guidance_scale: 1 is the conditional prediction alone, at half the cost.
        interval: network times (low, high) within which to guide, both ends included; the conditional prediction alone
            outside, which saves half the computing there (arXiv 2404.07724) but asks the device for each time.
            Default: everywhere.
        dtype: the number type that the model computes in; its predictions come back in that of x. None is that of x.
        weaker: as `model`, and with its times: one of the same task that is trained less, or smaller.

    Returns:
        model(x, t) of the guided prediction.

    Source: arXiv 2207.12598; guidance of all channels as mit-han-lab/efficientvit; autoguidance arXiv 2406.02507.
    """
    both_classes = torch.cat([classes, torch.full_like(classes, null_class)])

    def conditional(x: Tensor, t: Tensor) -> Tensor:
        return model(x.to(dtype or x.dtype), t, classes).to(x.dtype)

    def wanted_and_worse(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if weaker is not None:
            return conditional(x, t), weaker(x.to(dtype or x.dtype), t, classes).to(x.dtype)
        output, null = model(torch.cat([x, x]).to(dtype or x.dtype), t, both_classes).to(x.dtype).chunk(2)
        return output, null

    def guided(x: Tensor, t: Tensor) -> Tensor:
        if interval is not None and not interval[0] <= float(t) <= interval[1]:
            return conditional(x, t)
        output, worse = wanted_and_worse(x, t)
        channels = x.shape[1]
        worse, wanted, rest = worse[:, :channels], output[:, :channels], output[:, channels:]
        return torch.cat([worse + guidance_scale * (wanted - worse), rest], dim=1)

    return conditional if guidance_scale == 1.0 else guided


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
