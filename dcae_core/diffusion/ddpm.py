"""Ancestral sampling (DDPM) and its deterministic counterpart (DDIM) over evenly kept steps of a discrete schedule."""

import numpy as np
import torch
from torch import Tensor

from dcae_core.diffusion.calls import Model, Progress, StepNoise, draw_step_noise, require_steps
from dcae_core.diffusion.schedules import DiscreteSchedule, linear_schedule


def respace(schedule: DiscreteSchedule, num_steps: int) -> list[int]:
    """Which `num_steps` of the schedule's steps (0-based, rising) a shorter run keeps: evenly spread, both ends kept.

    Raises:
        UsageError: fewer than one step, or more than the schedule has.

    Source: openai/improved-diffusion `respace.py`.
    """
    require_steps(num_steps, maximum=schedule.num_timesteps)
    stride = (schedule.num_timesteps - 1) / max(1, num_steps - 1)
    return [round(i * stride) for i in range(num_steps)]


class Posterior:
    """q(x_{t-1} | x_t, data) of a chain of kept steps, as float64 arrays indexed by the kept step, rising in noise.

    Source: arXiv 2006.11239, equations 6 and 7; openai/improved-diffusion `gaussian_diffusion.py`.
    """

    def __init__(self, schedule: DiscreteSchedule, kept: list[int]) -> None:
        kept_cumprod = schedule.alphas_cumprod[kept]
        before = np.append(1.0, kept_cumprod[:-1])
        betas = 1.0 - kept_cumprod / before
        self.alphas_cumprod = kept_cumprod
        self.alphas_cumprod_before = before
        self.data_coefficient = betas * np.sqrt(before) / (1.0 - kept_cumprod)
        self.state_coefficient = (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - kept_cumprod)
        variance = betas * (1.0 - before) / (1.0 - kept_cumprod)
        if len(kept) > 1:
            variance[0] = variance[1]  # the first step's is zero, which has no logarithm
        else:
            variance[0] = betas[0]
        self.log_variance = np.log(variance)
        self.log_betas = np.log(betas)


@torch.no_grad()
def sample_ddpm(
    model: Model,
    noise: Tensor,
    num_steps: int = 250,
    step_noise: StepNoise | None = None,
    *,
    schedule: DiscreteSchedule | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Ancestral sampling over `num_steps` evenly kept steps; of weak order 1.

    Args:
        model: model(x, t) -> (B, 2C, H, W): epsilon, and where the log variance lies between the posterior's (-1) and
            the step's beta (1); or (B, C, H, W), epsilon alone, whose variance then is the posterior's. t is the
            schedule's own integer: 0..999 for DiT's.
        noise: where to start, (B, C, H, W).
        num_steps: evaluations, 1..1000.
        step_noise: standard normal noise of each step, of `noise`'s shape: a function of the step (0 is the noisiest),
            or anything indexed by it. Default: `torch.randn_like` at each step, the last one too, which adds none.
        schedule: the noise schedule the network was trained with; default DiT's.
        progress: called after each step.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: fewer than one step, or more than the schedule has.

    Source: arXiv 2006.11239, algorithm 2; arXiv 2102.09672, equation 15 (learned variance).
    """
    schedule = schedule or linear_schedule()
    kept = respace(schedule, num_steps)
    posterior = Posterior(schedule, kept)
    times = torch.tensor(kept, device=noise.device) + schedule.first_timestep
    x, channels = noise, noise.shape[1]
    for step in range(num_steps):
        i = num_steps - 1 - step
        output = model(x, times[i])
        alpha_bar = posterior.alphas_cumprod[i]
        data = (x - float(np.sqrt(1 - alpha_bar)) * output[:, :channels]) / float(np.sqrt(alpha_bar))
        x = float(posterior.data_coefficient[i]) * data + float(posterior.state_coefficient[i]) * x
        fresh = draw_step_noise(step_noise, step, x)
        if i > 0:
            x = x + _deviation(output[:, channels:], posterior, i) * fresh
        if progress:
            progress(step + 1, num_steps)
    return x


def _deviation(fraction: Tensor, posterior: Posterior, i: int) -> Tensor | float:
    low, high = float(posterior.log_variance[i]), float(posterior.log_betas[i])
    if fraction.shape[1] == 0:
        return float(np.exp(0.5 * low))
    return torch.exp(0.5 * (low + (fraction + 1) / 2 * (high - low)))


@torch.no_grad()
def sample_ddim(
    model: Model,
    noise: Tensor,
    num_steps: int = 50,
    *,
    schedule: DiscreteSchedule | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM without added noise (eta = 0) over `num_steps` evenly kept steps; of order 1.

    Args:
        model: model(x, t) -> epsilon (B, C, H, W), channels beyond C ignored; t is the schedule's own integer.
        noise: where to start, (B, C, H, W).
        num_steps: evaluations, 1..1000.
        schedule: the noise schedule the network was trained with; default DiT's.
        progress: called after each step.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: fewer than one step, or more than the schedule has.

    Source: arXiv 2010.02502, equation 12.
    """
    schedule = schedule or linear_schedule()
    kept = respace(schedule, num_steps)
    posterior = Posterior(schedule, kept)
    times = torch.tensor(kept, device=noise.device) + schedule.first_timestep
    x = noise
    for step in range(num_steps):
        i = num_steps - 1 - step
        epsilon = model(x, times[i])[:, : x.shape[1]]
        alpha_bar, before = posterior.alphas_cumprod[i], posterior.alphas_cumprod_before[i]
        data = (x - float(np.sqrt(1 - alpha_bar)) * epsilon) / float(np.sqrt(alpha_bar))
        x = float(np.sqrt(before)) * data + float(np.sqrt(1 - before)) * epsilon
        if progress:
            progress(step + 1, num_steps)
    return x
