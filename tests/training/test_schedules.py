"""Learning rates and averages against the published traces."""

import contextlib
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dcae_core.training.optimisers import Ema, averaged, learning_rate_at

GOLDEN = json.loads((Path(__file__).parent.parent / "fixtures" / "golden" / "misc.json").read_text())


def test_learning_rate_is_the_published_trace() -> None:
    golden = GOLDEN["lr_constant_with_warmup_5000_lr1e-4"]
    steps = golden.items() if isinstance(golden, dict) else enumerate(golden)
    for step, expected in steps:
        rate = learning_rate_at(int(step), peak=1e-4, warmup_steps=5000, schedule="constant", total_steps=500_000)
        assert rate == pytest.approx(expected, rel=1e-6)


def test_cosine_starts_at_the_peak_and_ends_at_the_final_rate() -> None:
    rates = [
        learning_rate_at(step, peak=2.0, warmup_steps=10, schedule="cosine", total_steps=111, final_fraction=0.1)
        for step in range(111)
    ]
    assert rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.1)
    assert rates[110] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_average_is_the_published_trace() -> None:
    golden = GOLDEN["ema_0.9999_warmup2000_of_sin(step/50)"]
    network = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        network.weight.zero_()
    ema = Ema(network, 0.9999, 2000)
    trace = {}
    for step in range(1, 3001):
        with torch.no_grad():
            network.weight.fill_(math.sin(step / 50))
        ema.update()
        trace[step] = ema.state_dict()["weight"].item()
    for step, expected in golden.items():
        assert trace[int(step)] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_average_is_applied_and_taken_back() -> None:
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    ema = Ema(network, 0.5, 0)
    first = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(2.0)
    ema.update()
    with ema.applied():
        assert torch.allclose(network.weight, first + 1.0)
    assert torch.allclose(network.weight, first + 2.0)
    assert ema.state_dict().keys() == {"weight"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_judged_in_evaluation_mode_and_goes_back_to_training(fails: bool) -> None:
    """Frozen modules stay in evaluation mode throughout, also where judging fails."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    network[1].eval()
    ema = Ema(network, 0.5, 0)
    before = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(2.0)
    with contextlib.suppress(KeyboardInterrupt), averaged(network, ema):
        assert not any(module.training for module in network.modules())
        assert torch.equal(network[0].weight, before)
        if fails:
            raise KeyboardInterrupt
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert torch.equal(network[0].weight, before + 2.0)
    with averaged(network, None):
        assert not network.training
        assert torch.equal(network[0].weight, before + 2.0)
