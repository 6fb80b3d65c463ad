"""Times that are not uniform, and losses that are not all weighed alike, against their closed forms."""

import math

import pytest
import torch

from dcae_core.diffusion.objectives import OBJECTIVES, TimeDistribution, build_objective, resolution_shift
from dcae_core.diffusion.schedules import scaled_linear_schedule

NUM = 100_000


def draw(times: TimeDistribution) -> torch.Tensor:
    return times.draw(NUM, torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("mean", [0.0, 0.7, -1.2])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_logit_normal_times_have_their_moments(mean: float, shift: float) -> None:
    """The logit of the noise's share is normal; a shift adds its logarithm (arXiv 2403.03206, section 3.1)."""
    t = draw(TimeDistribution("logit_normal", mean, 0.8, shift))
    logits = torch.log((1 - t) / t)
    assert logits.mean().item() == pytest.approx(mean + math.log(shift), abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)
    assert ((t > 0) & (t < 1)).all()


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_uniform_times_have_their_distribution(shift: float) -> None:
    """P(u <= x) for u = s v / (1 + (s - 1) v), v uniform, is x / (s - (s - 1) x)."""
    share_of_noise = 1 - draw(TimeDistribution(shift=shift))
    for x in (0.1, 0.4, 0.75, 0.95):
        expected = x / (shift - (shift - 1) * x)
        assert (share_of_noise <= x).double().mean().item() == pytest.approx(expected, abs=0.006)


def test_by_default_times_are_the_published_ones() -> None:
    expected = torch.rand(9, generator=torch.Generator().manual_seed(1))
    for objective in (OBJECTIVES["velocity"], build_objective("velocity", times=TimeDistribution(shift=1.0))):
        assert torch.equal(objective.draw_times(9, torch.Generator().manual_seed(1)), expected)


def test_the_shift_of_a_resolution_is_the_root_of_its_values() -> None:
    assert resolution_shift(4096, 4096) == 1.0
    assert resolution_shift(128 * 8 * 8, 4096) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_each_sample_by_its_closed_form(gamma: float) -> None:
    schedule = scaled_linear_schedule()
    t = torch.tensor([1, 40, 300, 700, 1000])
    data, noise = torch.randn(2, len(t), 4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind(0)

    def model(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return 0.5 * x

    losses = build_objective("epsilon", min_snr_gamma=gamma).losses(model, data, noise, t)
    plain = OBJECTIVES["epsilon"].losses(model, data, noise, t)["loss"]
    assert torch.equal(losses["mse"], plain)
    for row, step in enumerate(t.tolist()):
        alpha_squared = math.prod((1 - schedule.betas[:step]).tolist())
        snr = alpha_squared / (1 - alpha_squared)
        expected = plain[row].item() * min(snr, gamma) / snr
        assert losses["loss"][row].item() == pytest.approx(expected, rel=1e-5)
    weights = losses["loss"] / plain
    assert weights[0] < 0.01
    assert weights[-1] == 1.0
