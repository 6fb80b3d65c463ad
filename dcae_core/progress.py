"""How far a long call is: what callers may pass to be told, one type for each way of telling."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

ProgressCallback = Callable[[int, int], object]
"""`progress(done, total)` after each step, tile or image, with done = 1..total."""

Advance = Callable[..., object]
"""`advance(count)` when so many more are done, perhaps with `note="..."`, a few words about the moment, and `part`, how
much of the next one is done (0 to 1)."""

OpenProgress = Callable[[str, int], AbstractContextManager[Advance]]
"""`with progress("measure", total) as advance: ...`, for calls that count by themselves or do several things; a total
of 0 stands for work without units."""


def no_progress(description: str, total: int) -> AbstractContextManager[Advance]:
    """For callers without a screen."""
    return nullcontext(lambda count=1, note="", part=0.0: None)
