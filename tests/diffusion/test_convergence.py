"""Every sampler on Gaussian data against the closed form: the error falls with the expected order."""

import math

import pytest

from dcae_core.diffusion import (
    SAMPLERS,
    sample_ddim,
    sample_ddpm,
    sample_dopri5,
    sample_dpm_solver,
    sample_dpm_solver_multistep,
    sample_euler,
    sample_euler_maruyama,
    sample_heun,
)
from dcae_core.diffusion.schedules import linear_schedule, scaled_linear_schedule
from tests.diffusion import gaussian
from tests.golden import relative_error

# So many steps that the corners of the interpolated schedule do not show.
SMOOTH, SMOOTH_LINEAR = scaled_linear_schedule(1_000_000), linear_schedule(1_000_000)
END_TIME = 0.1
NOISE = gaussian.start()

SAMPLES = {
    "dpm-solver": lambda n: sample_dpm_solver(gaussian.epsilon(SMOOTH), NOISE, n, schedule=SMOOTH, end_time=END_TIME),
    "dpm-2m": lambda n: sample_dpm_solver_multistep(
        gaussian.epsilon(SMOOTH), NOISE, n, order=2, schedule=SMOOTH, end_time=END_TIME
    ),
    "dpm-3m": lambda n: sample_dpm_solver_multistep(
        gaussian.epsilon(SMOOTH), NOISE, n, order=3, schedule=SMOOTH, end_time=END_TIME
    ),
    "ddim": lambda n: sample_ddim(gaussian.epsilon(SMOOTH_LINEAR), NOISE, n, schedule=SMOOTH_LINEAR),
    "euler": lambda n: sample_euler(gaussian.velocity, NOISE, n),
    "heun": lambda n: sample_heun(gaussian.velocity, NOISE, n),
}
ANSWERS = {
    "dpm-solver": gaussian.at_time(SMOOTH, END_TIME, NOISE),
    "dpm-2m": gaussian.at_time(SMOOTH, END_TIME, NOISE),
    "dpm-3m": gaussian.at_time(SMOOTH, END_TIME, NOISE),
    "ddim": gaussian.at_data(SMOOTH_LINEAR, NOISE),
    "euler": gaussian.MEAN + gaussian.DEVIATION * NOISE,
    "heun": gaussian.MEAN + gaussian.DEVIATION * NOISE,
}


def measured_order(errors: dict[int, float]) -> float:
    (few, large), (many, small) = errors.items()
    return math.log(large / small) / math.log(many / few)


@pytest.mark.parametrize(
    ("name", "steps", "order"),
    [
        ("dpm-solver", (143, 287), 3),  # remainder 2: updates of order 3, then one of order 2
        ("dpm-solver", (144, 288), 2),  # remainder 0: the last update is of order 1
        ("dpm-2m", (80, 160), 2),
        ("dpm-3m", (10, 40), 3),  # later the first step, of order 1, shows
        ("ddim", (80, 320), 1),
        ("euler", (40, 160), 1),
        ("heun", (40, 160), 2),
    ],
)
def test_deterministic_samplers_converge_with_their_order(name, steps, order) -> None:
    errors = {n: relative_error(SAMPLES[name](n), ANSWERS[name]) for n in steps}
    assert errors[steps[1]] < 0.02
    assert measured_order(errors) > order - 0.15
    if name != "dpm-3m":
        assert measured_order(errors) < order + 0.25


def test_multistep_of_order_3_is_nearer_than_of_order_2() -> None:
    for steps in (10, 20, 40):
        second, third = (relative_error(SAMPLES[name](steps), ANSWERS[name]) for name in ("dpm-2m", "dpm-3m"))
        assert third < second / 5


@pytest.mark.parametrize(
    ("run", "lowest"),
    [
        (lambda x, n, noise: sample_ddpm(gaussian.epsilon(SMOOTH_LINEAR), x, n, noise, schedule=SMOOTH_LINEAR), 0.8),
        (
            lambda x, n, noise: sample_euler_maruyama(gaussian.velocity, x, n, noise, last_step=1 / n),
            0.95,
        ),
    ],
    ids=["ddpm", "euler-maruyama"],
)
def test_stochastic_samplers_converge_weakly_with_order_1(run, lowest) -> None:
    """The mean is right at any number of steps; the deviation's error falls with order 1 (for ddpm from below)."""
    errors = {}
    for steps in (100, 400):
        mean, deviation = gaussian.moments(lambda x, noise, n=steps: run(x, n, noise), steps)
        assert mean == pytest.approx(gaussian.MEAN, abs=1e-4)
        errors[steps] = abs(deviation - gaussian.DEVIATION)
    assert lowest < measured_order(errors) < 1.2


def test_dopri5_keeps_its_tolerance() -> None:
    answer = ANSWERS["euler"]
    errors = [
        relative_error(sample_dopri5(gaussian.velocity, NOISE, rtol, rtol * 1e-3), answer) for rtol in (1e-4, 1e-6)
    ]
    assert errors[0] < 1e-3
    assert errors[1] < 1e-6


def test_every_sampler_of_the_table_is_measured() -> None:
    assert {*SAMPLES, "ddpm", "euler-maruyama", "dopri5"} == set(SAMPLERS)
