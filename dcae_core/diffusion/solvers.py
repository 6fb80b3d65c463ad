"""Samplers with fixed steps: plain functions of a callable, all with the same contract."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dcae_core.diffusion.schedules import (
    DiscreteSchedule,
    linear_schedule,
    noise_from_linear_velocity,
    scaled_linear_schedule,
)
from dcae_core.errors import UsageError
from dcae_core.progress import ProgressCallback

END_TIME = 1e-3

Model = Callable[[Tensor, Tensor], Tensor]
"""model(x, t): x (B, C, H, W), t a 0-d tensor on x's device -> a prediction of x's shape (or with 2C channels)."""

StepNoise = Callable[[int], Tensor] | Sequence[Tensor] | Tensor
"""The noise of each step, of x's shape: step_noise(step) or step_noise[step], step = 0, 1, ... from the noisiest."""


def require_steps(num_steps: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Refuse, with a UsageError, a number of steps that the sampler cannot take."""
    if num_steps < minimum:
        raise UsageError(f"this sampler needs at least {minimum} step{'s' * (minimum > 1)}, not {num_steps}")
    if maximum is not None and num_steps > maximum:
        raise UsageError(f"this sampler takes at most {maximum} steps, not {num_steps}")


def times_like(times: Sequence[float], x: Tensor) -> Tensor:
    """All times of a loop on x's device, sent at once so that the loop never waits: float32, or x's own float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.tensor(times, dtype=dtype, device=x.device)


def draw_step_noise(step_noise: StepNoise | None, step: int, like: Tensor) -> Tensor:
    """The noise of one step on `like`'s device; from PyTorch's global generator where none is given."""
    if step_noise is None:
        return torch.randn_like(like)
    noise = step_noise(step) if callable(step_noise) else step_noise[step]
    return noise.to(like)


class _DataPrediction:
    """The network seen as a prediction of the data at given times of the schedule; counts its evaluations."""

    def __init__(
        self,
        model: Model,
        schedule: DiscreteSchedule,
        times: list[float],
        like: Tensor,
        progress: ProgressCallback | None,
    ) -> None:
        self.model = model
        self.network_times = times_like(schedule.network_time(times).tolist(), like)
        self.alphas = schedule.alpha(times).tolist()
        self.sigmas = schedule.sigma(times).tolist()
        self.progress = progress

    def __call__(self, x: Tensor, i: int) -> Tensor:
        epsilon = self.model(x, self.network_times[i])[:, : x.shape[1]]
        if self.progress:
            self.progress(i + 1, len(self.alphas))
        return (x - self.sigmas[i] * epsilon) / self.alphas[i]


@torch.no_grad()
def sample_dpm_solver(
    model: Model,
    noise: Tensor,
    num_steps: int = 30,
    *,
    schedule: DiscreteSchedule | None = None,
    end_time: float = END_TIME,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """DPM-Solver++ "fast": singlestep updates of order 3, the last one or two of lower order.

    Evaluations of the network = `num_steps`. Order 3 where `num_steps` leaves a remainder of 2 by 3, else 2, because
    the last update then is of order 1.

    Args:
        model: model(x, t) -> epsilon (B, C, H, W), channels beyond C ignored; t is the network's time, in (0, 1000].
        noise: where to start, (B, C, H, W).
        num_steps: evaluations, at least 1; times are spread evenly from 1 to `end_time`.
        schedule: the noise schedule the network was trained with; default U-ViT's.
        end_time: time in (0, 1) at which to stop.
        progress: called after each evaluation.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: no steps.

    Source: arXiv 2211.01095, algorithm 1, and arXiv 2206.00927, appendix D.3 (orders); mit-han-lab/efficientvit
        `efficientvit/diffusioncore/models/uvit_sampler/dpm_solver_pp.py`, method "fast".
    """
    require_steps(num_steps)
    schedule = schedule or scaled_linear_schedule()
    times = [1.0 + (end_time - 1.0) * i / num_steps for i in range(num_steps + 1)]
    predict = _DataPrediction(model, schedule, times[:-1], noise, progress)
    alphas, sigmas, lambdas = (f(times).tolist() for f in (schedule.alpha, schedule.sigma, schedule.lambda_))

    def move(x: Tensor, i: int, j: int, data: Tensor, slope: Tensor | None = None) -> Tensor:
        """From time i to time j along `data` plus, where given, `slope` times the distance in lambda from i."""
        h = lambdas[j] - lambdas[i]
        moved = sigmas[j] / sigmas[i] * x - alphas[j] * math.expm1(-h) * data
        return moved if slope is None else moved + alphas[j] * (math.expm1(-h) + h) * slope

    x, i = noise, 0
    for order in _fast_orders(num_steps):
        data, end = predict(x, i), i + order
        if order == 1:
            x = move(x, i, end, data)
        elif order == 2:
            middle = predict(move(x, i, i + 1, data), i + 1)
            ratio = (lambdas[i + 1] - lambdas[i]) / (lambdas[end] - lambdas[i])
            x = move(x, i, end, data + (middle - data) / (2 * ratio))
        else:
            slope = (predict(move(x, i, i + 1, data), i + 1) - data) / (lambdas[i + 1] - lambdas[i])
            slope = (predict(move(x, i, i + 2, data, slope), i + 2) - data) / (lambdas[i + 2] - lambdas[i])
            x = move(x, i, end, data, slope)
        i = end
    return x


def _fast_orders(num_steps: int) -> list[int]:
    """Orders that add up to `num_steps`: threes, then what the published solver ends with."""
    threes, rest = divmod(num_steps, 3)
    if rest == 0:
        return [3] * (threes - 1) + [2, 1]
    return [3] * threes + [rest]


@torch.no_grad()
def sample_dpm_solver_multistep(
    model: Model,
    noise: Tensor,
    num_steps: int = 30,
    *,
    order: int = 2,
    schedule: DiscreteSchedule | None = None,
    end_time: float = END_TIME,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """DPM-Solver++ multistep of order 2 ("2M") or 3 ("3M"): one evaluation per step, earlier ones reused.

    The first steps have only the evaluations there are, so a run starts with order 1; that bounds the order of 3M to 2
    in the limit of many steps, though its error stays well below that of 2M.

    Args:
        model: model(x, t) -> epsilon (B, C, H, W), channels beyond C ignored; t is the network's time, in (0, 1000].
        noise: where to start, (B, C, H, W).
        num_steps: steps and evaluations, at least 1; times are spread evenly from 1 to `end_time`.
        order: 1, 2 or 3.
        schedule: the noise schedule the network was trained with; default U-ViT's.
        end_time: time in (0, 1) at which to stop.
        progress: called after each evaluation.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: no steps.

    Source: arXiv 2211.01095, algorithm 2 and appendix B.
    """
    require_steps(num_steps)
    schedule = schedule or scaled_linear_schedule()
    times = [1.0 + (end_time - 1.0) * i / num_steps for i in range(num_steps + 1)]
    predict = _DataPrediction(model, schedule, times[:-1], noise, progress)
    alphas, sigmas, lambdas = (f(times).tolist() for f in (schedule.alpha, schedule.sigma, schedule.lambda_))

    x = noise
    history: list[Tensor] = []
    for i in range(num_steps):
        history = [predict(x, i), *history[: order - 1]]
        h = lambdas[i + 1] - lambdas[i]
        decay, data = math.expm1(-h), history[0]
        update = -decay * data
        if len(history) > 1:
            r0 = (lambdas[i] - lambdas[i - 1]) / h
            first = (data - history[1]) / r0
            if len(history) == 2:
                update = update - 0.5 * decay * first
            else:
                r1 = (lambdas[i - 1] - lambdas[i - 2]) / h
                change = (first - (history[1] - history[2]) / r1) / (r0 + r1)
                update = update + (decay / h + 1) * (first + r0 * change) - ((decay + h) / h**2 - 0.5) * change
        x = sigmas[i + 1] / sigmas[i] * x + alphas[i + 1] * update
    return x


@torch.no_grad()
def sample_euler(
    velocity: Model, noise: Tensor, num_steps: int = 50, *, progress: ProgressCallback | None = None
) -> Tensor:
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
def sample_heun(
    velocity: Model, noise: Tensor, num_steps: int = 25, *, progress: ProgressCallback | None = None
) -> Tensor:
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


@torch.no_grad()
def sample_euler_maruyama(
    velocity: Model,
    noise: Tensor,
    num_steps: int = 250,
    step_noise: StepNoise | None = None,
    *,
    last_step: float = 0.04,
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE of the straight path, with the path's sigma as diffusion; order 1, weakly.

    dx = (velocity + sigma * score) dt + sqrt(2 sigma) dW has the same marginals as the velocity's ODE. The last step
    adds no noise.

    Args:
        velocity: velocity(x, t) -> dx/dt (B, C, H, W); t is a 0-d tensor in [0, 1), noise at 0, data at 1.
        noise: where to start, (B, C, H, W).
        num_steps: evaluations, at least 2: num_steps - 1 equal steps up to 1 - last_step, then the last one.
        step_noise: standard normal noise of each step, of `noise`'s shape: a function of the step, or anything indexed
            by it. Default: `torch.randn_like`.
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
    x = noise
    for i in range(num_steps):
        slope = velocity(x, times[i])
        # sigma * score is minus the predicted noise, which stays finite where the score does not
        drift = slope - noise_from_linear_velocity(slope, x, times[i])
        if i < num_steps - 1:
            fresh = draw_step_noise(step_noise, i, x)
            x = x + step_size * drift + math.sqrt(2 * (1 - grid[i]) * step_size) * fresh
        else:
            x = x + last_step * drift
        if progress:
            progress(i + 1, num_steps)
    return x


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
    progress: ProgressCallback | None = None,
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
    progress: ProgressCallback | None = None,
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
