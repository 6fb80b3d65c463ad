"""`dcae train-diffusion`: train a diffusion model on a latent dataset as a recipe says."""

from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.options import Debug, Device, NumProcesses

if TYPE_CHECKING:
    from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
    from dcae_core.training.diffusion_run import DiffusionRunOptions


def train_diffusion(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting: steps=100. May be repeated.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(help="auto: go on with what the run directory holds; never; or a checkpoint.", metavar="MODE"),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, count, look at the data, do one step; write nothing.")
    ] = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Train a diffusion model on latents that `dcae encode-dataset` made.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-diffusion tiny --set latents=LATENTS --set run_dir=runs/mine
    dcae train-diffusion usit-h-f32 --nproc 8
    dcae sample --model runs/mine
    """
    import sys

    from dcae_core.distributed import is_main, launch, process_group, world_size

    if nproc > 1 and world_size() == 1:
        raise typer.Exit(launch(nproc, sys.argv[1:]))

    from dcae_cli.training_display import training_display
    from dcae_core.devices import select_device
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
    from dcae_core.training import diffusion_run
    from dcae_core.training.diffusion_recipe import check_diffusion_recipe

    options = diffusion_run.DiffusionRunOptions(select_device(device), resume)
    settings = load_recipe(recipe, TrainDiffusionRecipe, overrides, check_diffusion_recipe)
    with process_group(options.device):
        if dry_run:
            _print_forecast(settings, options)
            return
        with training_display() as watcher:
            directory = diffusion_run.train_diffusion(settings, options, watcher)
    if is_main():
        typer.echo(f"trained diffusion model: {directory} (dcae sample --model {directory})")


def _print_forecast(settings: "TrainDiffusionRecipe", options: "DiffusionRunOptions") -> None:
    from dcae_cli.output import print_table
    from dcae_core.distributed import is_main
    from dcae_core.training.diffusion_dry_run import forecast_diffusion

    found = forecast_diffusion(settings, options)
    if not is_main():
        return
    memory = found.memory
    sizes = (memory.weights, memory.training, memory.activations, memory.total)
    seconds = round(found.seconds_per_step, 2) if found.seconds_per_step is not None else "does not fit"
    columns = ["objective", "parameters", "weights GB", "optimiser GB", "activations GB", "total GB"]
    row = (settings.objective, f"{found.num_parameters:,}", *(f"{size / 1e9:.2f}" for size in sizes), seconds)
    print_table("one process, float32, without sharding", [*columns, "start and one step, s"], [row])
    typer.echo(f"free on {options.device}: {found.available / 1e9:.2f} GB")
    typer.echo(f"{found.num_latents:,} latents; the loader alone: {found.loader_latents_per_second:,.0f} latents/s")
    start = f"goes on from {found.continues_from}" if found.continues_from else "begins anew"
    typer.echo(f"the run in {settings.run_dir} {start}; nothing was written")
