"""A training run on the screen: loss, speed and time left; a live bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcae_cli.progress import Shown, clock, show_progress

_SECONDS_BETWEEN_LINES = 5.0
_HIDDEN = ("images_per_second", "loader_images_per_second", "loader_wait", "seconds_left", "step", "phase")
_SHOWN_IN_BAR = 4


@contextmanager
def training_display() -> Iterator[Any]:
    """A `RunLogger` for the main process, and a silent one for the others."""
    from dcae_cli.progress import is_quiet
    from dcae_core.distributed import is_main
    from dcae_core.training.task import SilentLogger

    if is_quiet() or not is_main():
        yield SilentLogger()
        return
    shown = show_progress("starting", 0, "steps")
    shown.tells_end = False  # the last record does
    with shown.watched():
        yield LiveDisplay(shown) if sys.stderr.isatty() else PlainDisplay(shown)


class _Display:
    """Steps, and other long work, are counted as in every command, whether or not their figures are logged."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._figures = ""

    def note(self, text: str) -> None:
        """A line by itself."""
        self._shown.say(text)

    def show(self, grid: Path, step: int) -> None:
        """Nothing: it lies in the run directory."""

    def advance(self, what: str, done: int, total: int | None) -> None:
        """Show a phase, or another long piece of work; the time left of the steps is that of all phases."""
        if what != self._shown.description or done < self._shown.done:
            self._shown.begin(what, total, "batches" if what == "latent statistics" else "steps")
        self._shown.advance(done - self._shown.done, note=self._figures)


class PlainDisplay(_Display):
    """Lines on standard error, figures at most every few seconds; validation always."""

    def __init__(self, shown: Shown) -> None:
        super().__init__(shown)
        self._last = 0.0

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """A line of figures, if it is time for one."""
        now = time.monotonic()
        if not _is_validation(record):
            if now - self._last < _SECONDS_BETWEEN_LINES and record["step"] != total_steps:
                return
            self._last = now
        self.note(describe_record(record, total_steps))


class LiveDisplay(_Display):
    """A bar that counts steps, with the first losses, the speed and the time left beside it."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Keep the losses beside the bar, validation figures above it."""
        if _is_validation(record):
            self.note(describe_record(record, total_steps))
            return
        names = [name for name in record if name not in _HIDDEN and "." not in name]
        names.sort(key=lambda name: name != "loss")
        losses = " ".join(f"{name} {record[name]:.4g}" for name in names[:_SHOWN_IN_BAR])
        self._figures = f"{losses} · {_speed(record)}"


def describe_record(record: dict[str, Any], total_steps: int) -> str:
    """One line of text for a line of `metrics.jsonl`."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in _HIDDEN)
    text = f"{record['phase']} {record['step']}/{total_steps}: {figures}"
    return text if _is_validation(record) else f"{text}; {_speed(record)}, {clock(record['seconds_left'])} left"


def _is_validation(record: dict[str, Any]) -> bool:
    return "images_per_second" not in record


def _speed(record: dict[str, Any]) -> str:
    return f"{record['images_per_second']:.3g} images/s (loader {record['loader_images_per_second']:.3g})"
