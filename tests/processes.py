"""Helpers for tests of several processes and of sudden ends: forked ones, with no second import of torch, and real."""

import functools
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch

import dcae_cli
from dcae_core.distributed import process_group

SOURCE = Path(dcae_cli.__file__).parents[1]
PROGRAM = "import sys; sys.argv[0] = 'dcae'; from dcae_cli.__main__ import main; main()"
_FORK = multiprocessing.get_context("fork")


def start(action: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Run `action` in a child of this process. The child computes on one thread: OpenMP does not survive a fork."""

    def child() -> None:
        torch.set_num_threads(1)
        action()

    process = _FORK.Process(target=child)
    process.start()
    return process


def run_in_group(num_processes: int, action: Callable[[], object]) -> None:
    """Run `action` in processes that form a gloo group; fails if one of them does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def member(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_processes), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with process_group(torch.device("cpu")):
                action()

        return run

    members = [start(member(rank)) for rank in range(num_processes)]
    for process in members:
        process.join(120)
    assert [process.exitcode for process in members] == [0] * num_processes


def workers_of(launcher: int) -> list[int]:
    """The processes that `dcae --nproc` started, in the order of their ranks. Needs Linux's /proc."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(number) for number in children.split()]


def one_thread(test):
    """For a test: compute on one thread, as forked children do."""

    @functools.wraps(test)
    def wrapped(*arguments, **keywords):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return test(*arguments, **keywords)
        finally:
            torch.set_num_threads(before)

    return wrapped
