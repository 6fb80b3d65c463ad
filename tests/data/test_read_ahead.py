"""Reading ahead: the order of the items, errors in their place, and a clean end."""

import threading
from contextlib import closing

import pytest

from dcae_core.data.read_ahead import read_ahead


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_ahead", [0, 2, 100])
def test_results_come_in_order(num_threads: int, num_ahead: int) -> None:
    results = read_ahead(range(20), lambda item: item * item, num_ahead=num_ahead, num_threads=num_threads)
    assert list(results) == [item * item for item in range(20)]


def test_an_error_comes_where_its_result_would() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("the third")
        return item

    results = read_ahead(range(5), read, num_ahead=4, num_threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)


def test_closed_early_it_leaves_no_thread_and_starts_nothing_new() -> None:
    started: list[int] = []
    before = threading.active_count()
    with closing(read_ahead(range(1000), started.append, num_ahead=3, num_threads=1)) as results:
        next(results)
    assert len(started) <= 5
    assert threading.active_count() == before
