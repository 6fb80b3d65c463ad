"""`dcae train-ae`: train or fine-tune an autoencoder as a recipe says."""

from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.options import ComputingDtype, Debug, Device, DryRun, Json, NumProcesses, Overrides, Recipe, Resume
from dcae_cli.processes import start_processes
from dcae_cli.training import (
    NEED_COLUMNS,
    need_cells,
    print_facts,
    print_forecast_json,
    print_result,
    train_or_forecast,
    with_dtype,
)

if TYPE_CHECKING:
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.train_ae import RunOptions


def train_ae(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = "auto",
    phase: Annotated[str | None, typer.Option(help="Go through this phase only.", metavar="NAME")] = None,
    dry_run: DryRun = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: ComputingDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train an autoencoder, or fine-tune one, through the phases of a recipe.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-ae tiny --set run_dir=runs/mine --set data.sources.0.path=IMAGES
    dcae train-ae finetune-decoder --dry-run
    """
    start_processes(nproc)

    from dcae_core.devices import select_device
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.checks import check_autoencoder_recipe
    from dcae_core.training.train_ae import RunOptions, train_autoencoder

    options = RunOptions(select_device(device), resume, phase)
    settings = load_recipe(recipe, TrainAutoencoderRecipe, with_dtype(overrides, dtype), check_autoencoder_recipe)
    directory = train_or_forecast(
        options.device,
        dry_run=dry_run,
        forecast=lambda: _print_forecast(settings, options, json),
        train=lambda logger: train_autoencoder(settings, options, logger),
    )
    print_result(directory, json, f"trained autoencoder: {directory}")


def _print_forecast(settings: "TrainAutoencoderRecipe", options: "RunOptions", as_json: bool) -> None:
    from dcae_cli.output import print_table
    from dcae_core.distributed import is_main
    from dcae_core.training.dry_run import forecast

    found = forecast(settings, options)
    if not is_main():
        return
    if as_json:
        print_forecast_json(options.device, found, settings.run_dir)
        return
    rows = []
    for phase in found.phases:
        trained = f"{phase.num_trained:,} of {phase.num_parameters:,}"
        seconds = found.seconds_per_step[phase.name] if found.seconds_per_step is not None else None
        rows.append((phase.name, ", ".join(phase.parts), trained, *need_cells(phase.memory, seconds)))
    columns = ["phase", "trains", "parameters", *NEED_COLUMNS]
    print_table("one process, float32", columns, rows)
    images = f"{found.num_images:,} images; the loader alone: {found.loader_images_per_second:.3g} images/s"
    damaged = [f"damaged: {line}" for line in found.damaged]
    print_facts(options.device, found, settings.run_dir, [images, *damaged])
