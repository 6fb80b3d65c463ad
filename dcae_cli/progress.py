"""How far a long command is: a bar on a terminal, a plain line every few seconds in a log file; and what failed."""

import sys
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager

from dcae_core.errors import printable
from dcae_core.progress import Advance

SECONDS_BETWEEN_LINES = 5.0


def counted(things: Sized) -> int | None:
    """The total of a command over files: None for a single one, of which only a long wait needs a word."""
    return len(things) if len(things) > 1 else None


@contextmanager
def progress(description: str, *, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Show progress on standard error while the body runs; under torchrun the first process alone shows it.

    Args:
        description: what is being done, such as "encode".
        total: how many units there are, or None where that is not known.
        unit: what is counted, in the plural.
    """
    from dcae_core.distributed import is_main

    if not is_main():
        yield lambda count=1, note="": None
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total, unit) as advance:
            yield advance


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")
        start = time.monotonic()
        done = 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=count, note=printable(f"{rate:.3g} {unit}/s {note}"))

        yield advance


@contextmanager
def _lines(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    start = time.monotonic()
    done = 0
    last_line = start

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, last_line
        done += count
        now = time.monotonic()
        if now - last_line < SECONDS_BETWEEN_LINES and done != total:
            return
        last_line = now
        amount = f"{done}" if total is None else f"{done}/{total}"
        rate = done / max(now - start, 1e-9)
        line = f"{description}: {amount} {unit}, {rate:.3g} {unit}/s {note}".rstrip()
        print(printable(line), file=sys.stderr, flush=True)

    yield advance


def report_failure(error: Exception) -> None:
    """Say that one of many files failed, while the command goes on with the others."""
    print(f"dcae: {error}", file=sys.stderr, flush=True)
