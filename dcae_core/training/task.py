"""Both sides of the training loop: what it asks of the thing it trains, and who it tells how it goes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dcae_core.training.optimisers import Ema, TrainedNetwork


class RunLogger(Protocol):
    """Told what happens; must not raise and must not change anything. Only the main process has one that speaks."""

    def note(self, text: str) -> None:
        """A line for people: what is trained, what was found, where something was written."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """A line of `metrics.jsonl`, and how many steps the whole run has."""

    def show(self, grid: Path, step: int) -> None:
        """An image file that validation has drawn: reconstructions below their inputs, or samples."""

    def advance(self, what: str, done: int, total: int | None) -> None:
        """How far a phase, by its name, or another long piece of work is: `done` of `total`.

        A total of None is not known, one of 0 stands for work without units.
        """


class SilentLogger:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Say nothing."""

    def show(self, grid: Path, step: int) -> None:
        """Say nothing."""

    def advance(self, what: str, done: int, total: int | None) -> None:
        """Say nothing."""


@dataclass
class Progress:
    """How far a run is, in optimiser steps: `phase_step` of this phase, `step` of all.

    `validation_due`: the validation of this step is still to be done: a stop cut it short, or the run begins.
    `skipped` steps changed nothing because a loss or gradient was not finite; `skipped_in_a_row`: the last of them.
    """

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    validation_due: bool = False
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Loss:
    """One scalar to go backward from, for the parameters of the network named.

    `terms` are what it is made of, for the log; scalars without gradient.
    """

    network: str
    value: Tensor
    terms: dict[str, Tensor]


class Batch(Protocol):
    """What the loop looks at in a part of a batch; the rest is between the loader and the task.

    Names of its items for messages, lines about `damaged` items that were replaced, and the time that the loader's
    workers spent on it, added up.
    """

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def damaged(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def worker_seconds(self) -> float: ...  # noqa: D102


class Task(Protocol):
    """One phase of a training.

    The first of the networks is the one that counts; `ema` is the average of its weights.
    """

    networks: dict[str, TrainedNetwork]
    ema: Ema | None

    def losses(self, batch: Any, step: int) -> Iterator[Loss]:
        """The losses of a part of a batch, one per network. The loop goes backward from each before asking on."""

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Within it, backward passes leave gradients in the process they were made in."""

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures on held-out data, or None where `stop` turned true on the way."""
