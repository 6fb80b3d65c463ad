"""Rounds, medians, memory and limits of measurements, on calls whose cost is known."""

import time

import pytest
import torch

from dcae_core.benchmarking.measuring import (
    Contestant,
    Machine,
    Measurement,
    Subject,
    advantage,
    held_bytes,
    measure,
    measure_machine,
    peak_bytes,
)

CPU = torch.device("cpu")
MACHINE = Machine("a processor", 2, "Linux", {}, "float32", matmul_flops=1e9, copy_bytes=1e8)


def subject(*contestants: Contestant, macs: int | None = 10**6, moved_bytes: int = 0) -> Subject:
    return Subject("nothing", "", 4, macs, moved_bytes, list(contestants))


def test_contestants_go_in_turns_of_alternating_order() -> None:
    calls: list[str] = []
    a, b = (Contestant(name, lambda name=name: calls.append(name)) for name in "ab")
    first, second = measure(subject(a, b), repeats=3, device=CPU)
    assert "".join(calls) == "ab" + "ab" + "ab" + "ba" + "ab"  # warm-up, memory, three rounds
    assert (len(first.seconds), len(second.cpu_seconds)) == (3, 3)


def test_a_slower_way_is_measured_as_slower_by_its_factor() -> None:
    short, long = (Contestant(f"{pause}", lambda pause=pause: time.sleep(pause)) for pause in (0.02, 0.06))
    fast, slow = measure(subject(short, long), repeats=3, device=CPU)
    assert 2 < advantage(fast, over=slow) < 4
    assert fast.median_seconds >= 0.02 > sum(fast.cpu_seconds)  # asleep on the clock, not on the processor
    assert fast.items_per_second == pytest.approx(4 / fast.median_seconds)


def test_figures_follow_from_the_times() -> None:
    measurement = Measurement(subject(macs=10**9, moved_bytes=10**8), "ours", seconds=[4.0, 1.0, 2.0], held_bytes=10**8)
    assert measurement.median_seconds == 2.0
    assert measurement.spread == pytest.approx(1.5)
    assert measurement.flops == pytest.approx(1e9)
    assert measurement.limit_seconds(MACHINE) == pytest.approx(2.0)  # 2e9 operations, and 2e8 bytes
    measurement.subject = subject(macs=None, moved_bytes=3 * 10**8)
    assert (measurement.flops, measurement.limit_seconds(MACHINE)) == (None, pytest.approx(4.0))


def test_outputs_are_compared() -> None:
    a, b = torch.ones(100), torch.ones(100)
    b[0] = 2
    measurements = measure(subject(Contestant("a", lambda: a), Contestant("b", lambda: b)), 1, CPU)
    assert [measurement.difference for measurement in measurements] == [0.0, pytest.approx(0.1)]


def test_peak_memory_is_what_a_call_takes_and_not_what_was_there() -> None:
    held = torch.ones(50_000_000 // 4)

    def call() -> float:
        return float((held[: 80_000_000 // 8] + 1).sum())  # 40 MB more

    peak = peak_bytes(call, CPU)
    if peak is None:
        pytest.skip("this kernel does not tell peak memory")
    assert 35e6 < peak < 60e6


def test_weights_that_share_memory_are_counted_once() -> None:
    a, b = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 10, bias=False)
    b.weight = a.weight
    assert held_bytes(a, b) == 400


def test_the_machine_has_a_name_and_rates() -> None:
    machine = measure_machine(CPU, torch.float32)
    assert machine.device
    assert machine.versions["torch"] == torch.__version__
    assert 1e8 < machine.matmul_flops < 1e15
    assert 1e7 < machine.copy_bytes < 1e13
