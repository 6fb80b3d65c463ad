"""Data from one Gaussian: the exact prediction of every kind, and where it takes any noise, in closed form."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dcae_core.diffusion.schedules import DiscreteSchedule

MEAN, DEVIATION = 0.7, 0.3


def start(batch_size: int = 16) -> Tensor:
    """Fixed float64 noise (batch_size, 1, 2, 2)."""
    return torch.randn(batch_size, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def epsilon(schedule: DiscreteSchedule, mean: float | Tensor = MEAN) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact noise prediction under a discrete schedule."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        time = (float(t) + 1 - schedule.first_timestep) / schedule.num_timesteps
        alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
        return sigma * (x - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2)

    return model


def velocity(x: Tensor, t: Tensor, mean: float | Tensor = MEAN) -> Tensor:
    """The exact velocity along the straight path."""
    alpha, sigma = t, 1 - t
    surprise = (x - alpha * mean) / (alpha**2 * DEVIATION**2 + sigma**2)
    return mean + alpha * DEVIATION**2 * surprise - sigma * surprise


def at_time(schedule: DiscreteSchedule, time: float, noise: Tensor) -> Tensor:
    """Where the probability flow takes `noise`, given at time 1, by `time`."""
    return _flow(float(schedule.alpha(time)), float(schedule.sigma(time)), schedule, noise)


def at_data(schedule: DiscreteSchedule, noise: Tensor) -> Tensor:
    """Where the probability flow takes `noise`, given at time 1, once no noise is left."""
    return _flow(1.0, 0.0, schedule, noise)


def _flow(alpha: float, sigma: float, schedule: DiscreteSchedule, noise: Tensor) -> Tensor:
    return carried(noise, (float(schedule.alpha(1.0)), float(schedule.sigma(1.0))), (alpha, sigma), MEAN)


def carried(x: Tensor, start: tuple[float, float], end: tuple[float, float], mean: float) -> Tensor:
    """Where the probability flow takes `x` between two levels, each (coefficient of the data, of the noise)."""
    before, after = (alpha**2 * DEVIATION**2 + sigma**2 for alpha, sigma in (start, end))
    return end[0] * mean + (x - start[0] * mean) * math.sqrt(after / before)


def moments(run: Callable[[Tensor, Tensor], Tensor], num_steps: int) -> tuple[float, float]:
    """Exact mean and deviation of a stochastic sampler's result, for a prediction that is linear in the state.

    The result then is linear in the start and in each step's noise; the batch gives each of them in turn the value 1.

    Args:
        run: run(start, step_noise) -> sample, with step_noise indexed by the step.
        num_steps: how many steps draw noise.
    """
    batch = num_steps + 2
    noise = torch.zeros(batch, 1, 1, 1, dtype=torch.float64)
    noise[1] = 1
    step_noise = torch.zeros(num_steps, batch, 1, 1, 1, dtype=torch.float64)
    for step in range(num_steps):
        step_noise[step, 2 + step] = 1
    sample = run(noise, step_noise).flatten()
    return float(sample[0]), float((sample[1:] - sample[0]).square().sum().sqrt())
