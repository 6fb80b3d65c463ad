"""`dcae train-ae` and `dcae train-diffusion`: train, or fine-tune, as a recipe says; or forecast that."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.options import (
    ComputingDtype,
    Debug,
    Device,
    DryRun,
    Json,
    NumProcesses,
    Overrides,
    Pairs,
    Recipe,
    Resume,
    Tf32,
)
from dcae_cli.processes import start_processes

if TYPE_CHECKING:
    import torch

    from dcae_core.training.dry_run import Forecast, PhaseForecast


def train_ae(
    recipe: Recipe,
    pairs: Pairs = None,
    overrides: Overrides = None,
    resume: Resume = "auto",
    phase: Annotated[str | None, typer.Option(help="Go through this phase only.", metavar="NAME")] = None,
    allow_changed_data: Annotated[
        bool, typer.Option("--allow-changed-data", help="Continue also where the images are not those of before.")
    ] = False,
    dry_run: DryRun = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: ComputingDtype = None,
    tf32: Tf32 = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an autoencoder, or fine-tune one, through the phases of a recipe.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-ae finetune-embedded run_dir=runs/mine data.sources.0.path=IMAGES
    dcae train-ae finetune-decoder --dry-run
    """
    start_processes(nproc)

    from dcae_cli.training_display import training_display
    from dcae_core.devices import select_device
    from dcae_core.distributed import process_group
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.checks import check_autoencoder_recipe
    from dcae_core.training.dry_run import forecast_autoencoder
    from dcae_core.training.run import RunOptions
    from dcae_core.training.train_ae import train_autoencoder

    options = RunOptions(select_device(device), resume, phase, allow_changed_data)
    changes = _all_changes(overrides, pairs, dtype, tf32)
    settings = load_recipe(recipe, TrainAutoencoderRecipe, changes, check_autoencoder_recipe)
    with process_group(options.device):
        if dry_run:
            _print_forecast(forecast_autoencoder(settings, options), options.device, settings.run_dir, json)
            return
        with training_display() as logger:
            directory = train_autoencoder(settings, options, logger)
        _print_result(directory, json, f"trained autoencoder: {directory} (dcae reconstruct IMG --model {directory})")


def train_diffusion(
    recipe: Recipe,
    pairs: Pairs = None,
    overrides: Overrides = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: ComputingDtype = None,
    tf32: Tf32 = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a diffusion model on latents that `dcae encode-dataset` made.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-diffusion tiny latents=LATENTS run_dir=runs/mine
    dcae train-diffusion usit-h-f32 --nproc 8
    dcae sample --model runs/mine
    """
    start_processes(nproc)

    from dcae_cli.training_display import training_display
    from dcae_core.devices import select_device
    from dcae_core.distributed import process_group
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
    from dcae_core.training import train_diffusion as training
    from dcae_core.training.checks import check_diffusion_recipe
    from dcae_core.training.dry_run import forecast_diffusion
    from dcae_core.training.run import RunOptions

    options = RunOptions(select_device(device), resume)
    changes = _all_changes(overrides, pairs, dtype, tf32)
    settings = load_recipe(recipe, TrainDiffusionRecipe, changes, check_diffusion_recipe)
    with process_group(options.device):
        if dry_run:
            _print_forecast(forecast_diffusion(settings, options), options.device, settings.run_dir, json)
            return
        with training_display() as logger:
            directory = training.train_diffusion(settings, options, logger)
        _print_result(directory, json, f"trained diffusion model: {directory} (dcae sample --model {directory})")


def _all_changes(
    overrides: list[str] | None, pairs: list[str] | None, dtype: str | None, tf32: bool | None
) -> list[str]:
    """What `--set`, bare `key=value`, `--tf32` and `--dtype` change in the recipe, in this order: the last counts."""
    from dcae_core.errors import UsageError

    for pair in pairs or []:
        if "=" not in pair:
            raise UsageError(f"{pair!r} is one argument too many: after the recipe come settings, such as seed=1")
    more = [] if tf32 is None else [f"execution.tf32={str(tf32).lower()}"]
    if dtype is not None:
        from dcae_core.devices import parse_dtype

        parse_dtype(dtype)
        more.append(f"execution.precision={dtype}")
    return [*(overrides or []), *(pairs or []), *more]


def _print_result(directory: Path, as_json: bool, text: str) -> None:
    from dcae_cli.output import print_json
    from dcae_core.distributed import is_main

    if is_main() and as_json:
        print_json({"directory": directory})
    elif is_main():
        typer.echo(text)


def _print_forecast(found: "Forecast", device: "torch.device", run_dir: str, as_json: bool) -> None:
    from dcae_cli.output import print_json, print_table
    from dcae_core.distributed import is_main

    if not is_main():
        return
    if as_json:
        print_json(asdict(found) | {"device": device, "run_dir": run_dir})
        return
    needs = ("weights GB", "optimiser GB", "activations GB", "total GB", "start and one step, s")
    rows = [_forecast_row(phase, found.seconds_per_step) for phase in found.phases]
    print_table("one process, float32, without sharding", ["phase", "trains", "parameters", *needs], rows)
    typer.echo(f"free on {device}: {found.available / 1e9:.2f} GB")
    speed = found.loader_items_per_second
    shown = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
    typer.echo(f"{found.num_items:,} {found.items}; the loader alone: {shown} {found.items}/s")
    for line in found.damaged:
        typer.echo(f"damaged: {line}")
    start = f"continues from {found.continues_from}" if found.continues_from else "begins at step 0"
    typer.echo(f"the run in {run_dir} {start}; nothing was written")


def _forecast_row(phase: "PhaseForecast", seconds_per_step: dict[str, float] | None) -> tuple[object, ...]:
    memory = phase.memory
    sizes = (f"{size / 1e9:.2f}" for size in (memory.weights, memory.training, memory.activations, memory.total))
    seconds = "does not fit" if seconds_per_step is None else round(seconds_per_step[phase.name], 2)
    return phase.name, phase.trains, f"{phase.num_trained:,} of {phase.num_parameters:,}", *sizes, seconds
