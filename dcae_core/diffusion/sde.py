"""Stochastic integration of a velocity from noise at time 0 to data at time 1."""

import math

import torch
from torch import Tensor

from dcae_core.diffusion.calls import Model, Progress, StepNoise, draw_step_noise, require_steps, times_like
from dcae_core.diffusion.paths import LINEAR, Path
from dcae_core.errors import UsageError


@torch.no_grad()
def sample_euler_maruyama(
    velocity: Model,
    noise: Tensor,
    num_steps: int = 250,
    step_noise: StepNoise | None = None,
    *,
    path: Path = LINEAR,
    last_step: float = 0.04,
    progress: Progress | None = None,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE whose diffusion is the path's sigma, the last step without noise.

    dx = (velocity + sigma * score) dt + sqrt(2 sigma) dW has the same marginals as the velocity's ODE. Weak order 1.

    Args:
        velocity: velocity(x, t) -> dx/dt (B, C, H, W); t is a 0-d tensor in [0, 1), noise at 0, data at 1.
        noise: where to start, (B, C, H, W).
        num_steps: evaluations, at least 2: num_steps - 1 equal steps up to 1 - last_step, then the last one.
        step_noise: standard normal noise of each step, of `noise`'s shape: a function of the step, or anything indexed
            by it. Default: `torch.randn_like`.
        path: the path the network was trained on.
        last_step: length of the last step, in (0, 1).
        progress: called after each step.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: fewer than two steps, or a last step that is not within (0, 1).

    Source: SiT (arXiv 2401.08740), section 3; willisma/SiT `transport/`, diffusion form "sigma", last step "Mean".
    """
    require_steps(num_steps, minimum=2)
    if not 0 < last_step < 1:
        raise UsageError(f"the last step must lie between 0 and 1, not {last_step}")
    step_size = (1 - last_step) / (num_steps - 1)
    grid = [i * step_size for i in range(num_steps)]
    times = times_like(grid, noise)
    sigmas = path.sigma(torch.tensor(grid, dtype=torch.float64)).tolist()
    x = noise
    for i in range(num_steps):
        slope = velocity(x, times[i])
        # sigma * score is minus the predicted noise, which stays finite where the score does not
        drift = slope - path.noise_from_velocity(slope, x, times[i])
        if i < num_steps - 1:
            fresh = draw_step_noise(step_noise, i, x)
            x = x + step_size * drift + math.sqrt(2 * sigmas[i] * step_size) * fresh
        else:
            x = x + last_step * drift
        if progress:
            progress(i + 1, num_steps)
    return x
