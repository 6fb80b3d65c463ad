"""A command, or any action, in a forked child that may take only so much memory and time."""

import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

from dcae_cli.__main__ import main

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `peak` is what it took at most beyond what the test had, in bytes."""

    exit_code: int
    stdout: str
    stderr: str
    peak: int
    seconds: float

    def assert_fails(self, exit_code: int, *words: str) -> None:
        """One line on standard error, safe to print, with all of `words`, and this exit code."""
        assert self.exit_code == exit_code, self.stderr
        self.assert_clean()
        for word in words:
            assert word in self.stderr
        assert self.stderr.count("\n") == 1, self.stderr

    def assert_clean(self) -> None:
        """Nothing unexpected, nothing that a terminal would obey."""
        for text in (self.stdout, self.stderr):
            assert "unexpected" not in text, text
            assert "Traceback" not in text, text
            assert not [letter for letter in text if not letter.isprintable() and letter != "\n"], text


def run_dcae(
    *arguments: object,
    memory: int = 4 * GIB,
    seconds: int = 120,
    cwd: Path | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> Outcome:
    """`dcae ...` as from the shell, killed after so many seconds, refused more than so much address space.

    `prepare` is called in the child, just before the command.
    """
    with TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _become_dcae(list(map(os.fsencode, map(str, arguments))), files, memory, seconds, cwd, prepare)
        _, status, usage = os.wait4(child, 0)
        elapsed = time.monotonic() - start
        texts = [Path(file).read_bytes().decode("utf-8", "replace") for file in files]
    taken = usage.ru_maxrss * 1024 - _resident()
    return Outcome(os.waitstatus_to_exitcode(status), *texts, peak=taken, seconds=elapsed)


def run_in_child(action: Callable[[], object], *, memory: int = 2 * GIB, seconds: int = 600) -> object:
    """What `action` gives, computed in a child; its exception is raised here, a sudden end as an AssertionError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _limit(memory, seconds)
        try:
            answer = (True, action())
        except BaseException as error:
            answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    assert content, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    worked, answer = pickle.loads(content)
    assert worked, answer
    return answer


def _become_dcae(
    arguments: list[bytes],
    files: list[str],
    memory: int,
    seconds: int,
    cwd: Path | None,
    prepare: Callable[[], object],
) -> NoReturn:
    exit_code = 99
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        if cwd is not None:
            os.chdir(cwd)
        _limit(memory, seconds)
        sys.argv = ["dcae", *map(os.fsdecode, arguments)]
        prepare()
        main()
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _limit(memory: int, seconds: int) -> None:
    """For this process: so much beyond what it has mapped, so much time, one thread (OpenMP survives no fork)."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
