"""Dormand-Prince 5(4): adaptive integration of a velocity from noise at time 0 to data at time 1."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dcae_core.diffusion.solvers import Model
from dcae_core.errors import UsageError
from dcae_core.progress import ProgressCallback

# Dormand and Prince (1980), with Shampine's error weights and midpoint; row i gives the state of stage i + 1.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH_ORDER = (1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60)
_ERROR = tuple(fifth - fourth for fifth, fourth in zip((*_STAGES[-1], 0.0), _FOURTH_ORDER, strict=True))
_MIDPOINT = (
    6025192743 / 30085553152 / 2,
    0.0,
    51252292925 / 65400821598 / 2,
    -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2,
    -1776094331 / 19743644256 / 2,
    11237099 / 235043384 / 2,
)
_SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.9, 0.2, 10.0
_ASIDE = 1e-6  # from a break, where the velocity has two values: more than float32 times stray

_Velocity = Callable[[float, Tensor], Tensor]


@torch.no_grad()
def sample_dopri5(
    velocity: Model,
    noise: Tensor,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    *,
    breaks: Sequence[float] = (),
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Dormand-Prince 5(4) with adaptive steps.

    The error norm is that of the whole batch, as published, so a sample depends on its batch by about `rtol` / 10. The
    last step may pass the end; then time 1 is read off the step's own interpolant, also as published, and the velocity
    is asked for times slightly above 1. Deciding on a step waits for the device once per step.

    Args:
        velocity: velocity(x, t) -> dx/dt (B, C, H, W); t is a 0-d tensor running from 0 (noise) to 1 (data).
        noise: where to start, (B, C, H, W).
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        breaks: times between 0 and 1 at which the velocity jumps, as where guidance begins. Each ends a step, and what
            is behind it starts afresh, at two evaluations; a step across would be rejected, or wrong.
        progress: called after each accepted step with the percentage of time done, and 100.

    Returns:
        The sample, (B, C, H, W).

    Raises:
        UsageError: a tolerance is not positive, or the velocity is not finite, so that no step is small enough.

    Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", II.4-II.6; steps and interpolation as
        rtqichen/torchdiffeq `dopri5`.
    """
    if rtol <= 0 or atol <= 0:
        raise UsageError(f"dopri5 tolerances must be positive, not rtol {rtol} and atol {atol}")
    times = torch.float64 if noise.dtype == torch.float64 else torch.float32

    def f(t: float, x: Tensor) -> Tensor:
        return velocity(x, torch.full((), t, dtype=times, device=x.device))

    x = noise
    for start, end in pairwise([0.0, *sorted(time for time in breaks if 0 < time < 1), 1.0]):
        x = _integrate(partial(_between, f, start, end), x, start, end, rtol, atol, progress)
    return x


def _between(f: _Velocity, start: float, end: float, t: float, x: Tensor) -> Tensor:
    """The velocity on a piece of the way, which at a break is that of the piece's own side."""
    if start > 0:
        t = max(t, start + _ASIDE)
    if end < 1:
        t = min(t, end - _ASIDE)
    return f(t, x)


def _integrate(
    f: _Velocity, x: Tensor, t: float, target: float, rtol: float, atol: float, progress: ProgressCallback | None
) -> Tensor:
    """From time `t` to `target`: a break is reached with a step of its own, 1 is read off the step that passes it."""
    slope = f(t, x)
    step = _first_step(f, t, x, slope, rtol, atol)
    while True:
        arrives = t + step >= target
        if arrives and target < 1:
            step = target - t
        stages = [slope]
        for node, weights in zip(_NODES, _STAGES, strict=True):
            end = x + step * _weighted_sum(weights, stages)
            stages.append(f(t + node * step, end))
        tolerance = atol + rtol * torch.maximum(x.abs(), end.abs())
        error = _rms(step * _weighted_sum(_ERROR, stages) / tolerance)
        if error <= 1:
            if progress:
                progress(min(100, round(100 * (t + step))), 100)
            if arrives:
                return _interpolate(x, end, stages, step, (target - t) / step)
            t, x, slope = t + step, end, stages[-1]
        step *= _step_factor(error)
        if not step > 1e-12:
            raise UsageError(
                f"dopri5 cannot go on at time {t:.4g}: the network's output is not finite or changes too fast"
            )


def _weighted_sum(weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    total = weights[0] * stages[0]
    for weight, stage in zip(weights[1:], stages[1:], strict=True):
        if weight:
            total = total + weight * stage
    return total


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _step_factor(error: float) -> float:
    """How much longer the next step may be; an error that is not a number asks for a shorter one."""
    if error == 0:
        return _MAX_FACTOR
    if not error < float("inf"):
        return _MIN_FACTOR
    return min(_MAX_FACTOR, max(_SAFETY * error**-0.2, 1.0 if error < 1 else _MIN_FACTOR))


def _first_step(f: _Velocity, t: float, x: Tensor, slope: Tensor, rtol: float, atol: float) -> float:
    """Hairer, Norsett, Wanner, section II.4: a step from the sizes of the state, its slope and the slope's change."""
    scale = atol + rtol * x.abs()
    size, speed = _rms(x / scale), _rms(slope / scale)
    trial = 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed
    change = _rms((f(t + trial, x + trial * slope) - slope) / scale) / trial
    fastest = max(speed, change)
    careful = max(1e-6, trial * 1e-3) if fastest <= 1e-15 else (0.01 / fastest) ** 0.2
    return min(100 * trial, careful)


def _interpolate(start: Tensor, end: Tensor, stages: list[Tensor], step: float, fraction: float) -> Tensor:
    """The step's quartic through start, middle and end with the slopes at both ends, at `fraction` of the step."""
    middle = start + step * _weighted_sum(_MIDPOINT, stages)
    first, last = step * stages[0], step * stages[-1]
    coefficients = (
        start,
        first,
        last - 4 * first - 11 * start - 5 * end + 16 * middle,
        5 * first - 3 * last + 18 * start + 14 * end - 32 * middle,
        2 * (last - first) - 8 * (end + start) + 16 * middle,
    )
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * fraction + coefficient
    return total
