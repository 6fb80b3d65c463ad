"""Threads that read what comes next while the caller works on what came before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], *, num_ahead: int, num_threads: int
) -> Generator[Result]:
    """`read(item)` for each item, in order, computed by threads; items are taken as needed, in the caller's thread.

    An error comes where its result would. Once closed, or left by an error, it drops what has not begun and waits for
    the rest. At most `num_ahead` results wait beyond the one that is returned.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
