"""What commands over many files say while they go on: a line for each file that failed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dcae_cli.progress import Advance


def report(error: Exception) -> None:
    """Say that one file failed; the command goes on with the others."""
    print(f"dcae: {error}", file=sys.stderr, flush=True)


@contextmanager
def silence() -> Iterator[Advance]:
    """Stands where progress would, for a single file."""
    yield lambda count=1, note="": None
