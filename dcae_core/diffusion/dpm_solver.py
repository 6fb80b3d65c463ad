"""DPM-Solver++: exponential integrators for noise-predicting networks, in data prediction.

All coefficients are computed in float64 on the CPU before the loop.
"""

import math

import torch
from torch import Tensor

from dcae_core.diffusion.calls import Model, Progress, require_steps, times_like
from dcae_core.diffusion.schedules import DiscreteSchedule, scaled_linear_schedule

END_TIME = 1e-3


class _DataPrediction:
    """The network seen as a prediction of the data at given times of the schedule; counts its evaluations."""

    def __init__(
        self, model: Model, schedule: DiscreteSchedule, times: list[float], like: Tensor, progress: Progress | None
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
    progress: Progress | None = None,
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
    progress: Progress | None = None,
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
