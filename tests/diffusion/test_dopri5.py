"""Our Dormand-Prince against torchdiffeq's: the same steps, evaluations and result."""

import pytest
import torch
from torch import Tensor

from dcae_core.diffusion import sample_dopri5
from dcae_core.errors import UsageError
from tests.golden import golden_noise, relative_error


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """A velocity that is not linear in state or time."""
    return torch.sin(3 * x.roll(1, dims=-1) + 5 * t) - x * torch.cos(4 * t)


class Counted:
    def __init__(self, velocity) -> None:
        self.velocity, self.calls = velocity, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dim() == 0
        self.calls += 1
        return self.velocity(x, t)


@pytest.mark.parametrize("velocity", [swirl, lambda x, t: 0 * x, lambda x, t: 100 * torch.cos(30 * t) * x])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_it_takes_the_steps_of_torchdiffeq(velocity, rtol) -> None:
    from torchdiffeq import odeint

    noise = golden_noise("x", (3, 4, 8, 8)).double()
    ours, theirs = Counted(velocity), Counted(velocity)
    sample = sample_dopri5(ours, noise, rtol=rtol)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = odeint(lambda t, x: theirs(x, t), noise, times, rtol=rtol, atol=1e-6, method="dopri5")[-1]
    assert ours.calls == theirs.calls
    assert relative_error(sample, expected) < 1e-9


def test_progress_rises_to_100() -> None:
    seen = []
    sample_dopri5(swirl, golden_noise("x", (1, 4, 8, 8)), progress=lambda step, total: seen.append((step, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)


def test_it_stops_where_no_step_is_small_enough() -> None:
    noise = golden_noise("x", (1, 4, 8, 8))
    for velocity in (lambda x, t: x * float("nan"), lambda x, t: torch.where(t > 0.5, float("inf"), 1.0) * x):
        with pytest.raises(UsageError, match="not finite"):
            sample_dopri5(velocity, noise)
    with pytest.raises(UsageError, match="positive"):
        sample_dopri5(swirl, noise, rtol=0)
