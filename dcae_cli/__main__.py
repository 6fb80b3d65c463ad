"""The `dcae` program: run one command, and end any failure in one clear line and a documented exit code."""

import contextlib
import io
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn

try:
    import typer

    from dcae_cli.failures import describe_failure
    from dcae_cli.processes import EXIT_LOST, LAUNCHED, handle_stops
    from dcae_core.distributed import stops
    from dcae_core.errors import LostProcessError, UsageError
except KeyboardInterrupt:  # while this is imported there is nothing to stop yet, and nobody to tell it
    sys.exit(130)

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_COMPLETION = "_DCAE_COMPLETE"  # set by a shell that asks how a line may go on


class _Standard(io.RawIOBase):
    """Standard error that never fails: a reader that has gone or a full disk under a log must not end a training."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        try:
            return os.write(self._descriptor, content)
        except OSError:
            return len(content)


def _run(arguments: list[str]) -> int:
    from dcae_cli.app import app

    command = typer.main.get_command(app)
    if _COMPLETION in os.environ:
        command(prog_name="dcae")
    try:
        with command.make_context("dcae", arguments) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    return 0


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    """Say what happened and exit; of several processes, one says what all of them must have run into."""
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not rank.isdecimal():
        print(f"dcae: {message}", file=sys.stderr)
    elif exit_code != UsageError.exit_code and exit_code < EXIT_INTERRUPTED - 1:  # 129: SIGHUP
        print(f"dcae: process {rank}: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _open_standard_streams() -> None:
    """Streams that stand whatever the program was started with: closed ones lead nowhere, and standard error holds."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one: no file of ours may come to lie where output goes.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:  # a service started us without
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        lasting = io.BufferedWriter(_Standard(sys.stderr.fileno()))
        sys.stderr = io.TextIOWrapper(lasting, sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may hold bytes that are no UTF-8; print them escaped rather than fail.
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    """Lead standard output nowhere if it cannot be written, lest what is left fails once more at the very end."""
    stream = sys.__stdout__
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _expand_home(argument: str) -> str:
    """`~/x` and `--option=~/x` as shells expand the one and not the other."""
    option, tilde, rest = argument.rpartition("=~")
    if tilde and option.startswith("--") and "=" not in option:
        return f"{option}={os.path.expanduser(f'~{rest}')}"
    return os.path.expanduser(argument) if argument.startswith("~") else argument


def main() -> NoReturn:
    """Run `dcae` with the arguments of this process and exit."""
    arguments = [_expand_home(argument) for argument in sys.argv[1:]]
    debug = "--debug" in arguments
    _open_standard_streams()
    if not debug:
        warnings.simplefilter("ignore")  # those of libraries concern the developers of dcae
    try:
        handle_stops()
        sys.exit(_run(arguments or ["--help"]))
    except BrokenPipeError:
        # The reader of our output has gone (`dcae models | head`): nothing is wrong.
        _give_up_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED, debug)
    except LostProcessError as error:
        if LAUNCHED in os.environ:
            sys.exit(EXIT_LOST)  # the launcher says which process was the first to end
        _fail(str(error), error.exit_code, debug)
    except Exception as error:
        if _COMPLETION in os.environ:
            sys.exit(1)  # a half-written line may be wrong; what is said about it would land in the middle of it
        _give_up_output()
        if stops:
            sys.exit(128 + stops[0])
        _fail(*describe_failure(error), debug)


def _main_of_process() -> NoReturn:
    """As `main`; one of several processes leaves without Python's last steps, in which gloo's threads may abort it."""
    try:
        main()
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") in ("", "1") or not isinstance(end.code, int):
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(end.code)


if __name__ == "__main__":
    _main_of_process()
