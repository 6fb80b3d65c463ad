"""The `dcae` program: run one command, and end any failure in one clear line and a documented exit code."""

import io
import os
import signal
import sys
import traceback
import warnings
from typing import NoReturn

import typer

from dcae_cli.failures import describe_failure
from dcae_core.errors import UsageError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143


def _terminate(signum: int, frame: object) -> NoReturn:
    # An exception, so that half-written files are removed on the way out. Training replaces this handler by its own.
    raise SystemExit(EXIT_TERMINATED)


def _run(arguments: list[str]) -> int:
    from dcae_cli.app import app

    command = typer.main.get_command(app)
    try:
        with command.make_context("dcae", arguments) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be told
    return 0


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    """Say what happened and exit; of several processes, one says what all of them must have run into."""
    if debug:
        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"dcae: {message}", file=sys.stderr)
    elif exit_code not in (UsageError.exit_code, EXIT_INTERRUPTED):
        print(f"dcae: process {rank}: {message}", file=sys.stderr)
    sys.exit(exit_code)


def main() -> NoReturn:
    """Run `dcae` with the arguments of this process and exit."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where a service started us without
            # File names may hold bytes that are no UTF-8; print them escaped rather than fail.
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if not debug:
        warnings.simplefilter("ignore")  # those of libraries concern the developers of dcae
    try:
        sys.exit(_run(arguments or ["--help"]))
    except BrokenPipeError:
        # The reader of our output has gone (`dcae models | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED, debug)
    except Exception as error:
        _fail(*describe_failure(error), debug)


if __name__ == "__main__":
    main()
