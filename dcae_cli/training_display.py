"""A training run on the screen: loss, speed and time left; a live bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0
_HIDDEN = ("images_per_second", "loader_images_per_second", "loader_wait", "seconds_left", "step", "phase")
_SHOWN_IN_BAR = 4


@contextmanager
def training_display() -> Iterator[Any]:
    """A `RunLogger` for the main process, and a silent one for the others."""
    from dcae_core.distributed import is_main
    from dcae_core.training.task import SilentLogger

    if not is_main():
        yield SilentLogger()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        bar = Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=Console(stderr=True))
        with bar:
            yield LiveDisplay(bar)
    else:
        yield PlainDisplay()


class PlainDisplay:
    """Lines on standard error, at most one every few seconds; validation always."""

    def __init__(self) -> None:
        self._last = 0.0

    def note(self, text: str) -> None:
        """A line by itself."""
        print(text, file=sys.stderr, flush=True)

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """A line of figures, if it is time for one."""
        now = time.monotonic()
        if not _is_validation(record):
            if now - self._last < _SECONDS_BETWEEN_LINES and record["step"] != total_steps:
                return
            self._last = now
        self.note(describe_record(record, total_steps))


class LiveDisplay:
    """A bar that counts steps, with the first losses, the speed and the time left beside it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, note="")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Move the bar; keep validation figures above it."""
        if _is_validation(record):
            self.note(describe_record(record, total_steps))
            return
        names = [name for name in record if name not in _HIDDEN and "." not in name]
        names.sort(key=lambda name: name != "loss")
        losses = " ".join(f"{name} {record[name]:.4g}" for name in names[:_SHOWN_IN_BAR])
        note = f"{losses} · {_speed(record)}"
        self._bar.update(
            self._task, description=record["phase"], total=total_steps, completed=record["step"], note=note
        )


def describe_record(record: dict[str, Any], total_steps: int) -> str:
    """One line of text for a line of `metrics.jsonl`."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in _HIDDEN)
    text = f"{record['phase']} {record['step']}/{total_steps}: {figures}"
    return text if _is_validation(record) else f"{text}; {_speed(record)}"


def _is_validation(record: dict[str, Any]) -> bool:
    return "images_per_second" not in record


def _speed(record: dict[str, Any]) -> str:
    hours, rest = divmod(round(record["seconds_left"]), 3600)
    return (
        f"{record['images_per_second']:.3g} images/s (loader {record['loader_images_per_second']:.3g}), "
        f"{hours}:{rest // 60:02}:{rest % 60:02} left"
    )
