"""`dcae train-ae`: train or fine-tune an autoencoder as a recipe says."""

from typing import Annotated, Any

import typer

from dcae_cli.options import Debug, Device, NumProcesses


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

    from dcae_cli.training_display import Display
    from dcae_core.devices import select_device
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
    from dcae_core.training.autoencoder_recipe import check_autoencoder_recipe
    from dcae_core.training.autoencoder_run import RunOptions, train_autoencoder

    chosen = select_device(device)
    settings = load_recipe(recipe, TrainAutoencoderRecipe, overrides, check_autoencoder_recipe)
    with process_group(chosen):
        watcher: Any = Display() if is_main() else None
        directory = train_autoencoder(settings, RunOptions(chosen, resume, phase), watcher)
    if is_main():
        typer.echo(f"trained autoencoder: {directory}")
