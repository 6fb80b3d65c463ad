"""Fixed-step integration of a velocity from noise at time 0 to data at time 1."""

import torch
from torch import Tensor

from dcae_core.diffusion.calls import Model, Progress, require_steps, times_like


@torch.no_grad()
def sample_euler(velocity: Model, noise: Tensor, num_steps: int = 50, *, progress: Progress | None = None) -> Tensor:
    """Euler's method, order 1: one evaluation per step.

    Args:
        velocity: velocity(x, t) -> dx/dt (B, C, H, W); t is a 0-d tensor in [0, 1), noise at 0, data at 1.
        noise: where to start, (B, C, H, W).
        num_steps: equal steps, at least 1.
        progress: called after each step.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: no steps.
    """
    require_steps(num_steps)
    times = times_like([i / num_steps for i in range(num_steps)], noise)
    x = noise
    for i in range(num_steps):
        x = x + velocity(x, times[i]) / num_steps
        if progress:
            progress(i + 1, num_steps)
    return x


@torch.no_grad()
def sample_heun(velocity: Model, noise: Tensor, num_steps: int = 25, *, progress: Progress | None = None) -> Tensor:
    """Heun's method, order 2: two evaluations per step.

    Args:
        velocity: velocity(x, t) -> dx/dt (B, C, H, W); t is a 0-d tensor in [0, 1], noise at 0, data at 1.
        noise: where to start, (B, C, H, W).
        num_steps: equal steps, at least 1 (the published "grid of N points" is N - 1 steps).
        progress: called after each step.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: no steps.

    Source: rtqichen/torchdiffeq, method "heun2"; SiT (arXiv 2401.08740).
    """
    require_steps(num_steps)
    times = times_like([i / num_steps for i in range(num_steps + 1)], noise)
    x = noise
    for i in range(num_steps):
        slope = velocity(x, times[i])
        ahead = velocity(x + slope / num_steps, times[i + 1])
        x = x + (slope + ahead) / (2 * num_steps)
        if progress:
            progress(i + 1, num_steps)
    return x
