"""`dcae train-diffusion`: train a diffusion model on a latent dataset as a recipe says."""

from typing import TYPE_CHECKING

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
    from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
    from dcae_core.training.train_diffusion import DiffusionRunOptions


def train_diffusion(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    dtype: ComputingDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a diffusion model on latents that `dcae encode-dataset` made.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-diffusion tiny --set latents=LATENTS --set run_dir=runs/mine
    dcae train-diffusion usit-h-f32 --nproc 8
    dcae sample --model runs/mine
    """
    start_processes(nproc)

    from dcae_core.devices import select_device
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
    from dcae_core.training import train_diffusion as diffusion_run
    from dcae_core.training.checks import check_diffusion_recipe

    options = diffusion_run.DiffusionRunOptions(select_device(device), resume)
    settings = load_recipe(recipe, TrainDiffusionRecipe, with_dtype(overrides, dtype), check_diffusion_recipe)
    directory = train_or_forecast(
        options.device,
        dry_run=dry_run,
        forecast=lambda: _print_forecast(settings, options, json),
        train=lambda logger: diffusion_run.train_diffusion(settings, options, logger),
    )
    print_result(directory, json, f"trained diffusion model: {directory} (dcae sample --model {directory})")


def _print_forecast(settings: "TrainDiffusionRecipe", options: "DiffusionRunOptions", as_json: bool) -> None:
    from dcae_cli.output import print_table
    from dcae_core.distributed import is_main
    from dcae_core.training.dry_run import forecast_diffusion

    found = forecast_diffusion(settings, options)
    if not is_main():
        return
    if as_json:
        print_forecast_json(options.device, found, settings.run_dir)
        return
    columns = ["objective", "parameters", *NEED_COLUMNS]
    needs = need_cells(found.memory, found.seconds_per_step)
    row = (settings.objective, f"{found.num_parameters:,}", *needs)
    print_table("one process, float32, without sharding", columns, [row])
    latents = f"{found.num_latents:,} latents; the loader alone: {found.loader_latents_per_second:,.0f} latents/s"
    print_facts(options.device, found, settings.run_dir, [latents])
