"""The table of samplers: which there are, what each may be asked to follow, and running one by name.

A new sampler is one function (model, noise, ..., progress) -> sample, and one row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dcae_core.diffusion.dopri5 import sample_dopri5
from dcae_core.diffusion.schedules import DiscreteSchedule, linear_schedule, scaled_linear_schedule
from dcae_core.diffusion.solvers import (
    Model,
    StepNoise,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_dpm_solver_multistep,
    sample_euler,
    sample_euler_maruyama,
    sample_heun,
)
from dcae_core.errors import UsageError, unknown_name
from dcae_core.progress import ProgressCallback

EPSILON, EPSILON_VARIANCE, VELOCITY = "epsilon", "epsilon_variance", "velocity"
_NOISE_PREDICTIONS = (EPSILON, EPSILON_VARIANCE)


@dataclass(frozen=True)
class Sampler:
    """One way from noise to data.

    Attributes:
        function: called with model, noise and the keywords that the flags below name.
        predictions: the kinds of prediction that it follows.
        num_steps: steps by default; None where it chooses its own.
        stochastic: whether it adds noise on the way (keyword `step_noise`).
        summary: one line for people.
    """

    function: Callable[..., Tensor]
    predictions: tuple[str, ...]
    num_steps: int | None
    stochastic: bool
    summary: str


SAMPLERS: dict[str, Sampler] = {
    "dpm-solver": Sampler(
        sample_dpm_solver, _NOISE_PREDICTIONS, 30, False, "DPM-Solver++ singlestep of order 3, as published for U-ViT"
    ),
    "dpm-2m": Sampler(
        partial(sample_dpm_solver_multistep, order=2), _NOISE_PREDICTIONS, 30, False, "DPM-Solver++ multistep, order 2"
    ),
    "dpm-3m": Sampler(
        partial(sample_dpm_solver_multistep, order=3), _NOISE_PREDICTIONS, 30, False, "DPM-Solver++ multistep, order 3"
    ),
    "ddim": Sampler(sample_ddim, _NOISE_PREDICTIONS, 50, False, "DDIM without added noise"),
    "ddpm": Sampler(sample_ddpm, _NOISE_PREDICTIONS, 250, True, "ancestral sampling, as published for DiT"),
    "dopri5": Sampler(sample_dopri5, (VELOCITY,), None, False, "adaptive Dormand-Prince, as published for USiT"),
    "heun": Sampler(sample_heun, (VELOCITY,), 25, False, "Heun's method: two evaluations per step"),
    "euler": Sampler(sample_euler, (VELOCITY,), 50, False, "Euler's method"),
    "euler-maruyama": Sampler(sample_euler_maruyama, (VELOCITY,), 250, True, "the reverse SDE instead of the ODE"),
}

DEFAULT_SAMPLERS = {EPSILON: "dpm-solver", EPSILON_VARIANCE: "ddpm", VELOCITY: "dopri5"}

# What the published networks of each kind were trained with; velocity networks use the linear path.
SCHEDULES: dict[str, DiscreteSchedule] = {EPSILON: scaled_linear_schedule(), EPSILON_VARIANCE: linear_schedule()}

_TIME_ROUNDING = 1e-6  # float32 times stray by so much: what is meant to lie at an end of an interval lies inside


def guidance_times(prediction: str, interval: tuple[float, float]) -> tuple[float, float]:
    """The network times of an interval of the way from data to noise, both ends included.

    Args:
        prediction: "epsilon", "epsilon_variance" or "velocity".
        interval: (low, high) in [0, 1], counted from the data, at 0, to the noise, at 1. A velocity network's time is 1
            minus that, and the state holds just this share of noise; for the others it is the step of the schedule over
            the number of steps, 1000.
    """
    low = -math.inf if interval[0] == 0 else interval[0] - _TIME_ROUNDING
    high = math.inf if interval[1] == 1 else interval[1] + _TIME_ROUNDING
    if prediction == VELOCITY:
        return 1 - high, 1 - low
    schedule = SCHEDULES[prediction]
    return float(schedule.network_time(low)), float(schedule.network_time(high))


def find_sampler(name: str | None, prediction: str) -> Sampler:
    """The sampler of this name, or the published one for this kind of prediction.

    Raises:
        UsageError: no such sampler, or it does not follow this kind of prediction.
    """
    name = name or DEFAULT_SAMPLERS[prediction]
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    if prediction not in SAMPLERS[name].predictions:
        fitting = [key for key, sampler in SAMPLERS.items() if prediction in sampler.predictions]
        raise UsageError(f"sampler {name} does not fit a network that predicts {prediction}; {', '.join(fitting)} do")
    return SAMPLERS[name]


def run_sampler(
    name: str | None,
    model: Model,
    noise: Tensor,
    *,
    prediction: str,
    num_steps: int | None = None,
    step_noise: StepNoise | None = None,
    breaks: Sequence[float] = (),
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Sample with a row of the table and the schedule that belongs to the kind of prediction.

    Args:
        name: of the sampler; None is the published one for `prediction`.
        model: model(x, t) -> a prediction.
        noise: where to start, (B, C, H, W).
        prediction: "epsilon", "epsilon_variance" or "velocity".
        num_steps: None is the sampler's default.
        step_noise: for stochastic samplers, the noise of each step; ignored by others.
        breaks: network times at which the prediction jumps, for samplers that choose their steps; ignored by others.
        progress: called after each step.

    Raises:
        UsageError: the sampler is unknown, does not fit, or cannot take this many steps.
    """
    sampler = find_sampler(name, prediction)
    options: dict[str, Any] = {}
    if prediction in SCHEDULES:
        options["schedule"] = SCHEDULES[prediction]
    if sampler.stochastic:
        options["step_noise"] = step_noise
    if sampler.num_steps is None and num_steps is not None:
        raise UsageError(
            f"sampler {name or DEFAULT_SAMPLERS[prediction]} chooses its own steps; leave their number out"
        )
    if sampler.num_steps is None:
        options["breaks"] = breaks
    else:
        options["num_steps"] = sampler.num_steps if num_steps is None else num_steps
    return sampler.function(model, noise, progress=progress, **options)
