"""What commands say on standard error: how far they are, `dcae: ...` for failures, `dcae: warning: ...` for warnings.

Progress is a bar on a terminal, a plain line every few seconds in a log file. Both start by themselves when work has
gone on for a moment, and go on while nothing is reported: whoever waits sees within two seconds that something
happens, and what. Work that is over before says nothing, or, of several units, one last line.
"""

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


@contextmanager
def progress(description: str, *, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Show progress on standard error while the body runs; under torchrun the first process alone shows it.

    Args:
        description: what is being done, such as "encode".
        total: how many units there are, or None where nobody knows.
        unit: what is counted, in the plural.
    """
    from dcae_core.distributed import is_main

    if not is_main():
        yield lambda count=1, note="", part=0.0: None
        return
    shown: _Shown = (_Bar if sys.stderr.isatty() else _Lines)(description, total, unit)
    with shown.watched():
        yield shown.advance


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


class _Shown:
    """What is done so far; `show` puts it on the screen, called by whoever advances and by a clock."""

    seconds_between: float

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.part, self.note = 0, 0.0, ""
        self._start = time.monotonic()
        self._pace = Pace()
        self._lock = threading.Lock()
        self._last_shown = self._start
        self._has_shown = False

    def advance(self, count: int = 1, note: str = "", part: float = 0.0) -> None:
        now = time.monotonic()
        with self._lock:
            moved = count + part - self.part
            self.done, self.part, self.note = self.done + count, part, note
            if moved > 0:
                self._pace.report(moved, now)
            is_last = self.done == self.total and count > 0 and (self._has_shown or self.total != 1)
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
        rate = self._pace.rate or (self.done + self.part) / max(elapsed, 1e-9)
        speed = [f"{rate:.3g} {self.unit}/s"] if rate > 0 else []
        left = None if self.total is None else self._pace.seconds_left(self.total - self.done - self.part, now)
        if self.done == self.total:
            speed.append(f"took {clock(elapsed)}")
        else:
            speed.append(f"{clock(elapsed)} so far" if left is None else f"{clock(left)} left")
        return " ".join([", ".join(speed), self.note]).rstrip()

    def show(self, figures: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more will be shown."""


class _Lines(_Shown):
    @property
    def seconds_between(self) -> float:  # type: ignore[override]
        return SECONDS_BETWEEN_LINES

    def show(self, figures: str) -> None:
        amount = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        print(printable(f"{self.description}: {amount} {self.unit}, {figures}"), file=sys.stderr, flush=True)


class _Bar(_Shown):
    seconds_between = _SECONDS_BETWEEN_BARS
    _bar: Any = None

    def show(self, figures: str) -> None:
        if self._bar is None:
            self._bar = self._begin()
        self._bar.update(self._task, completed=self.done + self.part, note=printable(figures))

    def _begin(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self.unit),
            TextColumn("{task.fields[note]}", markup=False),
        )
        bar = Progress(*columns, console=Console(stderr=True))
        self._task = bar.add_task(self.description, total=self.total, note="")
        bar.start()
        return bar

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def report_failure(error: Exception) -> None:
    """Say that one of many files failed, while the command goes on with the others."""
    print(f"dcae: {error}", file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Say what makes a result less than it seems."""
    print(f"dcae: warning: {line}", file=sys.stderr, flush=True)
