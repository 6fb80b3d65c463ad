"""The table of commands, and the group that imports a command's module only when that command is named.

A command is one module and one row. The target is `module:name`, where `name` is a function for typer or a
`typer.Typer` with subcommands; the module imports nothing heavy (torch, numpy, rich, ...) outside its functions.
"""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dcae_cli.options import Debug
from dcae_cli.progress import listen_to_library
from dcae_core.errors import UsageError, unknown_name

COMMANDS: dict[str, tuple[str, str]] = {
    "reconstruct": ("dcae_cli.reconstruct:reconstruct", "Images through an autoencoder and back, with the figures."),
    "decode": ("dcae_cli.decode:decode", "Saved latents back into images."),
    "encode-dataset": (
        "dcae_cli.encode_dataset:encode_dataset",
        "Encode images into a latent dataset, or verify one.",
    ),
    "latents": ("dcae_cli.latents:latents", "Look at a latent dataset, prove it, import and export it."),
    "train-ae": ("dcae_cli.train:train_ae", "Train or fine-tune an autoencoder as a recipe says."),
    "train-diffusion": (
        "dcae_cli.train:train_diffusion",
        "Train a diffusion model on a latent dataset as a recipe says.",
    ),
    "sample": ("dcae_cli.sample:sample", "Sample images from a diffusion model."),
    "eval": ("dcae_cli.evaluate:evaluate", "Measure a model or a folder of images by the published protocols."),
    "fid-ref": ("dcae_cli.fid_ref:fid_ref", "Measure the reference statistics that FID compares with."),
    "models": ("dcae_cli.models:models", "List the zoo; download from it."),
    "recipes": ("dcae_cli.recipes:recipes", "List, show and check recipes."),
    "convert": ("dcae_cli.convert:convert", "Convert an autoencoder between layouts."),
    "push": ("dcae_cli.push:push", "Send a model, with a card that explains it, to the Hugging Face hub."),
    "bench": ("dcae_cli.bench:bench", "Measure speed and memory on this machine, beside its limits and other code."),
    "info": ("dcae_cli.info:info", "Versions, devices, threads, the cache and the embedded model."),
}


def load_command(name: str) -> Any:
    """Import the command called `name` and turn it into what typer runs."""
    module, attribute = COMMANDS[name][0].split(":")
    target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        function = target
        target = typer.Typer(add_completion=False, rich_markup_mode=None)
        target.command(name)(function)
    return typer.main.get_command(target)


class LazyGroup(TyperGroup):
    """`dcae` itself: knows every command's name and line of help without importing any of them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: D102
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: D102
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: D102
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},  # commands take it over
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dcae {version('dcae')}")
        raise typer.Exit


@app.callback()
def dcae(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes: results, warnings and failures alone.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say what is read, from where, and where it computes.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Deep Compression Autoencoders and the latent diffusion models on top of them.

    \b
    dcae reconstruct photo.jpg -o out    a photograph through the embedded model
    dcae models                          every released model
    dcae COMMAND --help                  what a command takes, with whole examples
    dcae -q COMMAND, dcae -v COMMAND     say less, say more
    """
    if quiet and verbose:
        raise UsageError("-q says less and -v says more; take one of them")
    listen_to_library(quiet=quiet, verbose=verbose)
