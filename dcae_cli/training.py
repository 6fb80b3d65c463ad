"""What both trainings do on the command line: train or forecast, and say what a forecast found."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch

    from dcae_core.training.dry_run import DiffusionForecast, Forecast, MemoryEstimate
    from dcae_core.training.task import RunLogger

NEED_COLUMNS = ("weights GB", "optimiser GB", "activations GB", "total GB", "start and one step, s")


def with_dtype(overrides: list[str] | None, dtype: str | None) -> list[str] | None:
    """The recipe's overrides, and `--dtype` as one more where it is given.

    Raises:
        UsageError: there is no such type.
    """
    if dtype is None:
        return overrides
    from dcae_core.devices import parse_dtype

    parse_dtype(dtype)
    return [*(overrides or []), f"execution.precision={dtype}"]


def train_or_forecast(
    device: "torch.device", *, dry_run: bool, forecast: Callable[[], None], train: Callable[["RunLogger"], Path]
) -> Path | None:
    """Train, or print a forecast instead.

    Args:
        device: where to compute.
        dry_run: forecast only.
        forecast: prints one.
        train: returns the directory of what was trained.

    Returns:
        That directory, or None where there is nothing to say: after a forecast, and beside the main process.
    """
    from dcae_cli.training_display import training_display
    from dcae_core.distributed import is_main, process_group

    with process_group(device):
        if dry_run:
            forecast()
            return None
        with training_display() as logger:
            directory = train(logger)
    return directory if is_main() else None


def print_result(directory: Path | None, as_json: bool, text: str) -> None:
    """Say where what was trained lies; nothing if there is no directory."""
    from dcae_cli.output import print_json

    if directory is not None and as_json:
        print_json({"directory": directory})
    elif directory is not None:
        typer.echo(text)


def print_forecast_json(device: "torch.device", found: "Forecast | DiffusionForecast", run_dir: str) -> None:
    """A forecast for a program: everything in it, and what it is about. Sizes are in bytes."""
    from dcae_cli.output import print_json

    print_json(asdict(found) | {"device": device, "run_dir": run_dir})


def need_cells(memory: "MemoryEstimate", seconds: float | None) -> list[object]:
    """What stands below `NEED_COLUMNS`; `seconds` is None where the training does not fit into memory."""
    sizes = (memory.weights, memory.training, memory.activations, memory.total)
    return [*(f"{size / 1e9:.2f}" for size in sizes), "does not fit" if seconds is None else round(seconds, 2)]


def print_facts(
    device: "torch.device", found: "Forecast | DiffusionForecast", run_dir: str, about_data: list[str]
) -> None:
    """What stands below the table of what is needed: what there is, and what a run would begin with."""
    start = f"goes on from {found.continues_from}" if found.continues_from else "begins anew"
    typer.echo(f"free on {device}: {found.available / 1e9:.2f} GB")
    for line in about_data:
        typer.echo(line)
    typer.echo(f"the run in {run_dir} {start}; nothing was written")
