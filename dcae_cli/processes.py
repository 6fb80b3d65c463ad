"""Commands in several processes on this machine."""

import sys

import typer


def start_processes(count: int) -> None:
    """Where `--nproc` asks for several processes, run this command in as many and end with their exit code.

    In those processes, under torchrun, and for a single one it does nothing: the command goes on.
    """
    from dcae_core.distributed import launch, world_size

    if count > 1 and world_size() == 1:
        raise typer.Exit(launch(count, sys.argv[1:]))
