"""Running `dcae` in this process: the same as from the shell, without importing torch each time."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from dcae_cli.__main__ import main
from dcae_cli.progress import listen_to_library
from dcae_core.distributed import stops


@dataclass(frozen=True)
class Run:
    exit_code: int
    stdout: str
    stderr: str

    def assert_fails(self, exit_code: int, *words: str) -> None:
        """It ended with this exit code and one line on standard error that has all of `words`."""
        assert self.exit_code == exit_code, self.stderr
        assert self.stderr.startswith("dcae: ")
        assert self.stderr.count("\n") == 1, self.stderr
        for word in words:
            assert word in self.stderr

    def assert_succeeds(self) -> None:
        assert self.exit_code == 0, self.stderr


@pytest.fixture
def dcae(monkeypatch, capsys) -> Iterator[Callable[..., Run]]:
    """`dcae("info", "--json")` -> Run."""

    # On a slow machine lines of progress would stand between those that tests look for.
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BEFORE_FIRST_SIGN", 600.0)
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BETWEEN_LINES", 600.0)

    def run(*arguments: object) -> Run:
        monkeypatch.setattr(sys, "argv", ["dcae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err or "--debug" in arguments
        return Run(exit_.value.code, captured.out, captured.err)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield run
    listen_to_library()  # as loudly as before
    stops.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)
