"""`dcae train-ae`: train or fine-tune an autoencoder as a recipe says."""

from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.options import Debug, Device, NumProcesses

if TYPE_CHECKING:
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.autoencoder_run import RunOptions


def train_ae(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting: phases.full.steps=100. May be repeated.", metavar="KEY=VALUE"),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(help="auto: go on with what the run directory holds; never; or a checkpoint.", metavar="MODE"),
    ] = "auto",
    phase: Annotated[str | None, typer.Option(help="Go through this phase only.", metavar="NAME")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, count, look at the data, do one step; write nothing.")
    ] = False,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Train an autoencoder, or fine-tune one, through the phases of a recipe.

    Stop it at any moment with Ctrl-C or SIGTERM; the same command continues.

    \b
    dcae train-ae tiny --set run_dir=runs/mine --set data.sources.0.path=PICTURES
    dcae train-ae finetune-decoder --dry-run
    """
    import sys

    from dcae_core.distributed import is_main, launch, process_group, world_size

    if nproc > 1 and world_size() == 1:
        raise typer.Exit(launch(nproc, sys.argv[1:]))

    from dcae_cli.training_display import training_display
    from dcae_core.devices import select_device
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.autoencoder_recipe import check_autoencoder_recipe
    from dcae_core.training.autoencoder_run import RunOptions, train_autoencoder

    options = RunOptions(select_device(device), resume, phase)
    settings = load_recipe(recipe, TrainAutoencoderRecipe, overrides, check_autoencoder_recipe)
    with process_group(options.device):
        if dry_run:
            _print_forecast(settings, options)
            return
        with training_display() as watcher:
            directory = train_autoencoder(settings, options, watcher)
    if is_main():
        typer.echo(f"trained autoencoder: {directory}")


def _print_forecast(settings: "TrainAutoencoderRecipe", options: "RunOptions") -> None:
    from dcae_cli.output import print_table
    from dcae_core.distributed import is_main
    from dcae_core.training.autoencoder_dry_run import forecast

    found = forecast(settings, options)
    if not is_main():
        return
    rows = []
    for phase in found.phases:
        memory = phase.memory
        seconds = found.seconds_per_step[phase.name] if found.seconds_per_step is not None else None
        rows.append(
            (
                phase.name,
                ", ".join(phase.parts),
                f"{phase.num_trained:,} of {phase.num_parameters:,}",
                *(f"{size / 1e9:.2f}" for size in (memory.weights, memory.training, memory.activations, memory.total)),
                round(seconds, 2) if seconds is not None else "does not fit",
            )
        )
    sizes = ["weights GB", "optimiser GB", "activations GB", "total GB"]
    columns = ["phase", "trains", "parameters", *sizes, "start and one step, s"]
    print_table("one process, float32", columns, rows)
    typer.echo(f"free on {options.device}: {found.available / 1e9:.2f} GB")
    typer.echo(f"{found.num_pictures:,} pictures; the loader alone: {found.loader_images_per_second:.3g} images/s")
    for line in found.damaged:
        typer.echo(f"damaged: {line}")
    start = f"goes on from {found.continues_from}" if found.continues_from else "begins anew"
    typer.echo(f"the run in {settings.run_dir} {start}; nothing was written")
