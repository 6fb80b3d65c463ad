"""Guidance in an interval and away from a weaker network, on Gaussian classes: the answer is known in closed form.

Where all predictions are exact and of one deviation, the guided one is that of a Gaussian around worse + scale *
(mean - worse). So the flow has three pieces: the class alone, the guided mean inside the interval, the class alone.
"""

import pytest
import torch
from torch import Tensor

from dcae_core.diffusion import guide, run_sampler, sample_dopri5
from dcae_core.diffusion.samplers import SAMPLERS, SCHEDULES, guidance_times
from tests.diffusion import gaussian

MEAN, NULL_MEAN, WEAK_MEAN = 0.7, 0.1, 0.4
SCALE = 2.0
CLASSES, NULL_CLASS = torch.tensor([0] * 4), 1
NOISE = gaussian.start(4)
LOW, HIGH = 0.25, 0.75
FOLLOWS = {"dopri5": "velocity", "heun": "velocity", "euler": "velocity", "dpm-2m": "epsilon", "ddim": "epsilon"}
STEPS = {"dopri5": None, "heun": 400, "euler": 8000, "dpm-2m": 800, "ddim": 1000}


def network(prediction: str, *means: float):
    """model(x, t, y) that knows a Gaussian around `means[y]`."""

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        mean = torch.tensor(means, dtype=x.dtype)[y][:, None, None, None]
        if prediction == "velocity":
            return gaussian.velocity(x, t, mean)
        return gaussian.epsilon(SCHEDULES[prediction], mean)(x, t)

    return model


def level(prediction: str, share: float) -> tuple[float, float]:
    """(coefficient of the data, of the noise) at a place between data and noise."""
    if prediction == "velocity":
        return 1 - share, share
    schedule = SCHEDULES[prediction]
    return float(schedule.alpha(share)), float(schedule.sigma(share))


def answer(prediction: str, end: float, worse: float | None) -> Tensor:
    """The flow from noise to `end`, guided between HIGH and LOW where there is something worse."""
    guided = MEAN if worse is None else worse + SCALE * (MEAN - worse)
    x = NOISE
    for start, stop, mean in ((1.0, HIGH, MEAN), (HIGH, LOW, guided), (LOW, end, MEAN)):
        x = gaussian.carried(x, level(prediction, start), level(prediction, stop), mean)
    return x


def sampled(sampler: str, *, weaker=None, null_mean: float = NULL_MEAN) -> Tensor:
    prediction = FOLLOWS[sampler]
    times = guidance_times(prediction, (LOW, HIGH))
    model = guide(network(prediction, MEAN, null_mean), CLASSES, NULL_CLASS, SCALE, times, weaker=weaker)
    return run_sampler(sampler, model, NOISE, prediction=prediction, num_steps=STEPS[sampler], breaks=times)


@pytest.mark.parametrize("sampler", FOLLOWS)
def test_guidance_acts_in_its_interval_alone(sampler) -> None:
    end = 1e-3 if FOLLOWS[sampler] == "epsilon" else 0.0
    expected, unguided = (answer(FOLLOWS[sampler], end, worse) for worse in (NULL_MEAN, None))
    assert (sampled(sampler) - expected).abs().max() < (expected - unguided).abs().mean() / 15


@pytest.mark.parametrize("sampler", ["dopri5", "dpm-2m"])
def test_a_weaker_network_takes_the_place_of_no_class(sampler) -> None:
    prediction = FOLLOWS[sampler]
    end = 1e-3 if prediction == "epsilon" else 0.0
    expected, unguided = (answer(prediction, end, worse) for worse in (WEAK_MEAN, None))
    weaker = network(prediction, WEAK_MEAN, torch.nan)
    found = sampled(sampler, weaker=weaker, null_mean=torch.nan)  # neither is asked without a class
    assert (found - expected).abs().max() < (expected - unguided).abs().mean() / 15


def test_the_adaptive_sampler_ends_a_step_where_guidance_begins_and_ends() -> None:
    """Steps across the jumps end 2e-4 off at this tolerance, after 500 evaluations."""
    calls = []
    exact = network("velocity", MEAN, NULL_MEAN)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return exact(x, t, y)

    times = guidance_times("velocity", (LOW, HIGH))
    found = sample_dopri5(guide(model, CLASSES, NULL_CLASS, SCALE, times), NOISE, rtol=1e-6, breaks=times)
    assert (found - answer("velocity", 0.0, NULL_MEAN)).abs().max() < 2e-5
    assert len(calls) < 100


@pytest.mark.parametrize(
    ("prediction", "first", "last"),
    [("velocity", 1.0, 0.0), ("epsilon", 1, 1000), ("epsilon_variance", 0, 999)],
)
def test_the_whole_way_holds_every_time_and_ends_belong_to_an_interval(prediction, first, last) -> None:
    low, high = guidance_times(prediction, (0.0, 1.0))
    assert low < min(first, last) - 1 < max(first, last) + 1 < high
    low, high = guidance_times(prediction, (0.2, 0.8))
    ends = {"velocity": (0.2, 0.8), "epsilon": (200, 800), "epsilon_variance": (199, 799)}[prediction]
    assert (low, high) == pytest.approx(ends, rel=1e-4)
    assert low <= float(torch.tensor(ends[0])) < float(torch.tensor(ends[1])) <= high


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.num_steps])
def test_outside_the_interval_the_conditional_network_alone_works(name) -> None:
    prediction = SAMPLERS[name].predictions[-1]
    rows = {"whole": 0, "interval": 0}

    for kind, interval in (("whole", (0.0, 1.0)), ("interval", (0.3, 0.5))):

        def model(x: Tensor, t: Tensor, y: Tensor, kind: str = kind) -> Tensor:
            rows[kind] += len(y)
            return 0.1 * x

        guided = guide(model, CLASSES, NULL_CLASS, SCALE, guidance_times(prediction, interval))
        run_sampler(name, guided, NOISE, prediction=prediction, num_steps=100)
    assert rows["interval"] == pytest.approx(rows["whole"] * (0.5 + 0.5 * 0.2), rel=0.05)
