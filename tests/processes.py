"""Helpers for tests of several processes and of sudden ends: forked ones, with no second import of torch, and real."""

import functools
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NoReturn

import torch

import dcae_cli
from dcae_cli.__main__ import _main_of_process
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


class ForkedWorker:
    """For the launcher instead of `subprocess.Popen`: a worker that finds all that a started one does, and no imports
    to do. To be put there in a forked child, where nobody has to take it away again.
    """

    prepare: ClassVar[Callable[["ForkedWorker"], object]] = lambda worker: None  # in the worker, before its command
    _pipes: ClassVar[list[int]] = []  # what the launcher holds, and no worker may

    def __init__(self, command: list[str], *, env: dict[str, str], **_: object) -> None:
        self.returncode: int | None = None
        reader, writer = os.pipe()
        self._pipes.append(writer)
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            os.dup2(reader, 0)
            for descriptor in (reader, *self._pipes):
                os.close(descriptor)
            self._become_worker(command[command.index("dcae_cli") + 1 :], env)
        os.close(reader)

    def _become_worker(self, arguments: list[str], environment: dict[str, str]) -> NoReturn:
        try:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = ["dcae", *arguments]
            self.prepare()
            _main_of_process()
        finally:
            os._exit(99)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


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
