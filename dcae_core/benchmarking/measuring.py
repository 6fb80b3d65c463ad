"""Timing several ways of doing the same thing in alternation, so that what the machine does beside hits all alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dcae_core.benchmarking.machine import Machine, synchronise
from dcae_core.benchmarking.memory import peak_bytes

_WARM_UP_CALLS = {"cpu": 1}
_WARM_UP_CALLS_ELSEWHERE = 3  # compiled code is captured at the second call

UNTIMED_ROUNDS = 2  # to warm up, and to measure memory

Progress = Callable[[int, int, str], None]
"""progress(done, total, what) after each round, untimed ones among them."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing it.

    Attributes:
        name: in tables.
        call: does it once. If it returns a tensor, that is compared with what the first contestant returns.
        held_bytes: memory of its networks, asked once it is warm.
    """

    name: str
    call: Callable[[], object]
    held_bytes: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        what: its name.
        setting: of what size and type, in words.
        items: pictures, latents or samples that one call deals with.
        macs: multiply-accumulates of one call as the definition counts them, or None where nothing is multiplied.
        moved_bytes: inputs and outputs of one call; the networks' own bytes come on top.
        contestants: the ways of doing it, ours first.
    """

    what: str
    setting: str
    items: int
    macs: int | None
    moved_bytes: int
    contestants: list[Contestant]


@dataclass
class Measurement:
    """What one contestant took.

    Attributes:
        subject: what was measured.
        implementation: the contestant's name.
        seconds: of each timed call, by the clock on the wall.
        cpu_seconds: of the same calls, added up over the threads of this process.
        held_bytes: of its networks.
        peak_bytes: the most that a call had above what was held before it; None where that cannot be known.
        difference: relative L2 distance of its output from the first contestant's; None where there is no output.
    """

    subject: Subject
    implementation: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    held_bytes: int | None = None
    peak_bytes: int | None = None
    difference: float | None = None

    @property
    def median_seconds(self) -> float:
        """The middle one of the calls."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest call, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_seconds

    @property
    def items_per_second(self) -> float:
        """Pictures, latents or samples per second."""
        return self.subject.items / self.median_seconds

    @property
    def flops(self) -> float | None:
        """Operations per second, counted as the definition has them, whatever algorithm does them."""
        return None if self.subject.macs is None else 2 * self.subject.macs / self.median_seconds

    def limit_seconds(self, machine: Machine) -> float:
        """What a call cannot be faster than: its operations at the rate of matrix products, or its bytes once each.

        A faster algorithm than the definition's (Winograd's) may beat the first.
        """
        computing = 2 * (self.subject.macs or 0) / machine.matmul_flops
        return max(computing, (self.subject.moved_bytes + (self.held_bytes or 0)) / machine.copy_bytes)

    def as_json(self, machine: Machine) -> dict[str, Any]:
        """As plain values."""
        subject = self.subject
        return {
            "what": subject.what,
            "setting": subject.setting,
            "implementation": self.implementation,
            "items": subject.items,
            "median_seconds": self.median_seconds,
            "spread": self.spread,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "items_per_second": self.items_per_second,
            "macs": subject.macs,
            "flops": self.flops,
            "share_of_matmul": None if self.flops is None else self.flops / machine.matmul_flops,
            "limit_seconds": self.limit_seconds(machine),
            "held_bytes": self.held_bytes,
            "peak_bytes": self.peak_bytes,
            "difference": self.difference,
        }


def measure(
    subject: Subject, repeats: int, device: torch.device, progress: Progress = lambda done, total, what: None
) -> list[Measurement]:
    """Warm every contestant up, then time `repeats` rounds in which each goes once, in turns of alternating order."""
    rounds = UNTIMED_ROUNDS + repeats
    measurements = [Measurement(subject, contestant.name) for contestant in subject.contestants]
    pairs = list(zip(subject.contestants, measurements, strict=True))
    first: object = None
    for contestant, measurement in pairs:
        output: object = None
        for _ in range(_WARM_UP_CALLS.get(device.type, _WARM_UP_CALLS_ELSEWHERE)):
            output = contestant.call()
        first = output if first is None else first
        if isinstance(output, Tensor) and isinstance(first, Tensor):
            measurement.difference = _relative_difference(output, first)
        del output
    del first
    progress(1, rounds, subject.what)
    for contestant, measurement in pairs:
        measurement.peak_bytes = peak_bytes(contestant.call, device)
        measurement.held_bytes = contestant.held_bytes()
    progress(2, rounds, subject.what)
    for number in range(repeats):
        for contestant, measurement in pairs if number % 2 == 0 else reversed(pairs):
            _time(contestant, measurement, device)
        progress(UNTIMED_ROUNDS + number + 1, rounds, subject.what)
    return measurements


def advantage(measurement: Measurement, over: Measurement) -> float:
    """How many times faster: the median over the rounds, in each of which both ran side by side."""
    return median(theirs / ours for ours, theirs in zip(measurement.seconds, over.seconds, strict=True))


def _time(contestant: Contestant, measurement: Measurement, device: torch.device) -> None:
    synchronise(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    contestant.call()
    synchronise(device)
    measurement.seconds.append(time.perf_counter() - start)
    measurement.cpu_seconds.append(time.process_time() - cpu_start)


def _relative_difference(output: Tensor, reference: Tensor) -> float:
    reference = reference.double()
    return float((output.double() - reference).norm() / reference.norm())
