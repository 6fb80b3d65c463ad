"""What commands say on standard error: how far they are, `dcae: ...` for failures, `dcae: warning: ...` for warnings.

Progress is a bar on a terminal, a plain line every few seconds in a log file. Both start by themselves when work has
gone on for a moment, and go on while nothing is reported: whoever waits sees within two seconds that something
happens, and what. Work that is over before says nothing, or, of several units, one last line.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dcae_core.errors import printable
from dcae_core.progress import Advance

SECONDS_BEFORE_FIRST_SIGN = 1.5
SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_BARS = 0.5


class _StandardError(logging.Handler):
    """Lines of the library's logger, where all else goes that is no result."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"dcae: {printable(record.getMessage())}", file=sys.stderr, flush=True)


_library = logging.getLogger("dcae_core")
_handler = _StandardError()


def listen_to_library(*, quiet: bool = False, verbose: bool = False) -> None:
    """Print what the library logs: warnings; nothing below an error if `quiet`, also its notes if `verbose`."""
    _library.addHandler(_handler)
    _library.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def is_quiet() -> bool:
    """Whether progress and notes are unwanted (`dcae -q`)."""
    return _library.level == logging.ERROR


@contextmanager
def progress(description: str, *, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Show progress on standard error while the body runs; under torchrun the first process alone shows it.

    Args:
        description: what is being done, such as "encode".
        total: how many units there are, None where that is not known, 0 for work without units.
        unit: what is counted, in the plural.
    """
    from dcae_core.distributed import is_main

    if is_quiet() or not is_main():
        yield lambda count=1, note="", part=0.0: None
        return
    shown = show_progress(description, total, unit)
    with shown.watched():
        yield shown.advance


def show_progress(description: str, total: int | None, unit: str) -> "Shown":
    """A bar on a terminal, else lines."""
    return (_Bar if sys.stderr.isatty() else _Lines)(description, total, unit)


class Pace:
    """Units a second, as a mean that slowly forgets, so that one slow unit moves the time left by little.

    The first report is where it starts: what was there before (the kept part of a run that goes on) and the warm-up
    say nothing about the rest.
    """

    _HALF_LIFE = 60.0  # seconds

    def __init__(self) -> None:
        self._reported: float | None = None
        self._units = self._seconds = 0.0

    def report(self, units: float, now: float) -> None:
        """`units` more are done at `now`."""
        if self._reported is not None:
            elapsed = now - self._reported
            kept = 0.5 ** (elapsed / self._HALF_LIFE)
            self._units, self._seconds = self._units * kept + units, self._seconds * kept + elapsed
        self._reported = now

    @property
    def rate(self) -> float | None:
        """Units a second, once two reports have come."""
        return self._units / self._seconds if self._units > 0 and self._seconds > 0 else None

    def seconds_left(self, units: float, now: float) -> float | None:
        """How long `units` more will take, counted from the last report."""
        if self.rate is None or self._reported is None:
            return None
        return max(units / self.rate - (now - self._reported), 0.0)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


class Shown:
    """What is done so far; `show` puts it on the screen, called by whoever advances and by a clock."""

    seconds_between: float
    tells_end = True  # with a last line

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._lock = threading.Lock()
        self._has_shown = False
        self.begin(description, total, unit)
        self._last_shown = self._start

    def begin(self, description: str, total: int | None, unit: str) -> None:
        """Another piece of work, counted from nothing."""
        with self._lock:
            self.description, self.total, self.unit = description, total, unit
            self.done, self.part, self.note = 0, 0.0, ""
            self._start = time.monotonic()
            self._pace = Pace()

    def advance(self, count: int = 1, note: str = "", part: float = 0.0) -> None:
        """`count` more are done, and `part` of the next one; shown if it is time for that."""
        now = time.monotonic()
        with self._lock:
            moved = count + part - self.part
            self.done, self.part, self.note = self.done + count, part, note
            if moved > 0:
                self._pace.report(moved, now)
            is_last = self.tells_end and self.done == self.total and count > 0 and (self._has_shown or self.total != 1)
            if is_last or now - self._last_shown >= self.seconds_between:
                self._show(now)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Show the state now and then, whether or not the body reports anything."""
        over = threading.Event()
        clock_thread = threading.Thread(target=self._tick, args=(over,), daemon=True)
        clock_thread.start()
        try:
            yield
        finally:
            over.set()
            clock_thread.join()
            self.close()

    def _tick(self, over: threading.Event) -> None:
        seconds = SECONDS_BEFORE_FIRST_SIGN
        while not over.wait(seconds):
            with self._lock:
                now = time.monotonic()
                seconds = self.seconds_between - (now - self._last_shown) if self._has_shown else 0.0
                if seconds <= 0:
                    self._show(now)
                    seconds = self.seconds_between

    def _show(self, now: float) -> None:
        self._last_shown, self._has_shown = now, True
        self.show(self._figures(now))

    def _figures(self, now: float) -> str:
        """Speed and time left where they are known, else the time gone."""
        elapsed = now - self._start
        # One report tells a rate only where it told everything: it may be what an earlier run had done.
        whole = self.done / max(elapsed, 1e-9) if self.total in (None, self.done) else 0.0
        rate = self._pace.rate or whole
        speed = [f"{rate:.3g} {self.unit}/s"] if rate > 0 else []
        left = None if self.total is None else self._pace.seconds_left(self.total - self.done - self.part, now)
        if self.done == self.total and self.total:
            speed.append(f"took {clock(elapsed)}")
        else:
            speed.append(f"{clock(elapsed)} so far" if left is None else f"{clock(left)} left")
        return " ".join([", ".join(speed), self.note]).rstrip()

    def show(self, figures: str) -> None:
        """Put the state and these words about it on the screen."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """A line by itself; the next sign of life can wait."""
        with self._lock:
            self._last_shown, self._has_shown = time.monotonic(), True
        print(printable(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing more will be shown."""


class _Lines(Shown):
    @property
    def seconds_between(self) -> float:  # type: ignore[override]
        return SECONDS_BETWEEN_LINES

    def show(self, figures: str) -> None:
        amount = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        amount = f"{amount} {self.unit}, " if self.total != 0 else ""
        print(printable(f"{self.description}: {amount}{figures}"), file=sys.stderr, flush=True)


class _Bar(Shown):
    seconds_between = _SECONDS_BETWEEN_BARS
    _bar: Any = None

    def show(self, figures: str) -> None:
        if self._bar is None:
            self._bar = self._begin()
        done = self.done + self.part
        state = {"description": self.description, "total": self.total, "completed": done}
        self._bar.update(self._task, **state, note=printable(figures))

    def _begin(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        # On a narrow terminal the words at the end are cut, never the count.
        words = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=words),
        )
        bar = Progress(*columns, console=Console(stderr=True), expand=True)
        self._task = bar.add_task(self.description, total=self.total, note="")
        bar.start()
        return bar

    def say(self, text: str) -> None:
        if self._bar is None:
            super().say(text)
        else:
            self._bar.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._show(time.monotonic())
            self._bar.stop()


def report_failure(error: Exception) -> None:
    """Say that one of many files failed, while the command goes on with the others."""
    print(f"dcae: {error}", file=sys.stderr, flush=True)


def note(line: str) -> None:
    """Say what is good to know and changes nothing."""
    if not is_quiet():
        print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Say what makes a result less than it seems."""
    print(f"dcae: warning: {printable(line)}", file=sys.stderr, flush=True)
