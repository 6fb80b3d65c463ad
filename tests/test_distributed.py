"""What processes tell each other: the same everywhere, and nothing that Python would run."""

import pickle
import signal
from pathlib import Path

import pytest
import torch

from dcae_core.distributed import broadcast_object, gather_bytes, gather_objects, process_group, rank
from tests.processes import one_thread, run_in_group

VALUES = [{"images": 3, "names": ["é", "\udc80", ""], "none": None}, 0.1 + 0.2]


def test_a_process_alone_has_what_it_gave() -> None:
    assert gather_bytes(b"a") == [b"a"]
    assert gather_objects(VALUES) == [VALUES]
    assert broadcast_object(VALUES) is VALUES


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_no_work_begins_after_a_stop_whose_exception_was_lost(
    number: int, end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcae_core.distributed.stops", [number])
    with pytest.raises(end), process_group(torch.device("cpu")):
        pytest.fail("began")


@one_thread
def test_values_of_all_lengths_arrive_in_the_order_of_ranks() -> None:
    def tell() -> None:
        assert gather_objects(VALUES[rank()]) == VALUES
        assert broadcast_object(VALUES if rank() == 0 else "not this") == VALUES
        assert gather_bytes(b"" if rank() == 0 else bytes(range(256))) == [b"", bytes(range(256))]
        assert gather_bytes(b"") == [b"", b""]

    run_in_group(2, tell)


@one_thread
def test_nothing_that_arrives_is_unpickled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_tensor_to_object", refuse)

    run_in_group(2, lambda: gather_objects(VALUES))
