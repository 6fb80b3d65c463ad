"""Noise schedules against the published values, and the identities between the views of a path."""

import json

import numpy as np
import pytest
import torch

from dcae_core.diffusion.schedules import (
    linear_schedule,
    linear_state,
    linear_velocity,
    noise_from_linear_velocity,
    scaled_linear_schedule,
)
from dcae_core.diffusion.solvers import respace
from dcae_core.errors import UsageError
from tests.golden import GOLDEN, golden_noise


def test_the_discrete_vp_schedule_has_the_published_values() -> None:
    expected = json.loads((GOLDEN / "misc.json").read_text())["vp_discrete"]
    schedule = scaled_linear_schedule()
    assert schedule.log_alpha(expected["t"]) == pytest.approx(expected["log_alpha"], rel=1e-4)
    assert schedule.lambda_(expected["t"]) == pytest.approx(expected["lambda"], rel=1e-5)
    assert schedule.lambda_(expected["inverse_lambda(-4,0,3)"]) == pytest.approx([-4, 0, 3], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("schedule", [scaled_linear_schedule(), linear_schedule()])
def test_a_schedule_is_consistent(schedule) -> None:
    times = np.linspace(1e-3, 1, 777)
    assert schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2 == pytest.approx(1)
    assert np.all(np.diff(schedule.lambda_(times)) < 0)
    steps = np.arange(1, 1001) / 1000
    assert schedule.alpha(steps) ** 2 == pytest.approx(schedule.alphas_cumprod)
    assert schedule.network_time(steps[[0, -1]]).round(9).tolist() == [
        schedule.first_timestep,
        schedule.first_timestep + 999,
    ]


def test_respacing_keeps_both_ends_and_spreads_evenly() -> None:
    kept = respace(linear_schedule(), 250)
    assert (kept[0], kept[-1], len(set(kept))) == (0, 999, 250)
    assert set(np.diff(kept)) == {4, 5}
    assert respace(linear_schedule(), 1000) == list(range(1000))
    for steps in (0, -3, 1001):
        with pytest.raises(UsageError, match="step"):
            respace(linear_schedule(), steps)


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.5, 0.9])], ids=["one", "each"])
def test_the_views_of_the_straight_path_agree(t) -> None:
    t = t.double()
    data, noise = golden_noise("data", (3, 2, 4, 4)).double(), golden_noise("eps", (3, 2, 4, 4)).double()
    x, velocity = linear_state(data, noise, t), linear_velocity(data, noise)
    torch.testing.assert_close(noise_from_linear_velocity(velocity, x, t), noise)
    ahead, behind = (linear_state(data, noise, t + shift) for shift in (1e-5, -1e-5))
    torch.testing.assert_close((ahead - behind) / 2e-5, velocity, rtol=1e-6, atol=1e-6)
