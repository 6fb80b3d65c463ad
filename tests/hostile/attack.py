"""The harness: mutated and generated files through one reader, each held to what every reader of dcae promises.

Whatever comes in: it is read, or refused by an error that ends the command line with a documented exit code and one
line that is safe to print; in bounded time; in bounded memory, since the whole attack runs in a child of little of it.

A quick attack runs a fixed number of cases from a fixed seed. A long one goes on for `DCAE_HOSTILE_SECONDS` from
`DCAE_HOSTILE_SEED`, and prints how many cases it ran: `pytest -m slow tests/hostile/test_parsers.py -s`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dcae_cli.failures import describe_failure
from dcae_core.errors import RecipeError, is_out_of_memory, printable
from tests.hostile.child import MIB, run_in_child

DOCUMENTED = (2, 3, 4, 5)
_MEMORY = 1024 * MIB
_SECONDS_PER_CASE = 20
_CASES_PER_ROUND = 200


@dataclass(frozen=True)
class Reader:
    """One parser under attack.

    Attributes:
        name: of the parser.
        file_name: what a case is written as.
        cases: what is tried, as bytes.
        read: reads the file at a path, and uses what it found as a command would.
        prepare: puts what belongs beside the file into its directory.
    """

    name: str
    file_name: str
    cases: st.SearchStrategy[bytes]
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda directory: None


def attack_quickly(reader: Reader, cases: int) -> None:
    """So many cases, the same every time."""
    run_in_child(lambda: _round(reader, cases, 0), memory=_MEMORY)


def attack_at_length(reader: Reader) -> int:
    """As many cases as the time budget holds; returns how many."""
    budget = float(os.environ.get("DCAE_HOSTILE_SECONDS", "60"))
    number = int(os.environ.get("DCAE_HOSTILE_SEED", "1"))

    def go_on() -> int:
        end, done = time.monotonic() + budget, 0
        while time.monotonic() < end:
            _round(reader, _CASES_PER_ROUND, number + done)
            done += _CASES_PER_ROUND
        return done

    done = run_in_child(go_on, memory=_MEMORY, seconds=int(2 * budget) + 600)
    assert isinstance(done, int)
    return done


def _round(reader: Reader, cases: int, number: int) -> None:
    with TemporaryDirectory() as folder:
        directory = Path(folder)
        reader.prepare(directory)
        path = directory / reader.file_name

        @seed(number)
        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(reader.cases)
        def hold(content: bytes) -> None:
            path.write_bytes(content)
            hold_to_promises(lambda: reader.read(path))

        hold()


def hold_to_promises(read: Callable[[], object]) -> None:
    """Read; whatever is raised must be an expected failure of one printable line."""
    with _time_limit(_SECONDS_PER_CASE):
        try:
            read()
        except Exception as error:
            message, code = describe_failure(error)
            if code not in DOCUMENTED or is_out_of_memory(error):
                raise
            lines = message.split("\n") if isinstance(error, RecipeError) else [message]
            assert all(printable(line) == line for line in lines), repr(message)
            assert len(message) < 20_000, f"{len(message)} letters: {message[:200]}"
            assert message.strip()


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def too_slow(number: int, frame: Any) -> None:
        raise AssertionError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
