"""`dcae convert`: one autoencoder, from the layout it is in to another."""

from pathlib import Path
from typing import Annotated

import typer

from dcae_cli.completion import complete_autoencoder
from dcae_cli.options import Debug, Dtype, Json, Revision


def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="Zoo name, hub id, local directory or weights file.",
            metavar="MODEL",
            autocompletion=complete_autoencoder,
        ),
    ],
    to: Annotated[str, typer.Option(help="Layout to write: original, diffusers or dcae.", metavar="LAYOUT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; new or empty.", metavar="DIR")],
    name: Annotated[
        str | None,
        typer.Option(help="The zoo name of these weights, where their files do not say it.", metavar="NAME"),
    ] = None,
    dtype: Dtype = "fp32",
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert an autoencoder between the original (efficientvit), the diffusers and our own layout.

    The diffusers layout opens with `diffusers.AutoencoderDC.from_pretrained(DIR)`; the original one with the published
    code. A network that a layout cannot express is refused.

    \b
    Examples:
      dcae convert dc-ae-f32c32-in-1.0 --to diffusers -o f32-diffusers
      dcae convert f32-diffusers --to original --name dc-ae-f32c32-in-1.0 -o f32-original
      dcae convert model.pt --to dcae --dtype fp16 -o f32-half
    """
    from dcae_cli.output import print_json
    from dcae_core.checkpoints.autoencoders import (
        DIFFUSERS,
        LAYOUTS,
        locate_autoencoder,
        read_autoencoder,
    )
    from dcae_core.checkpoints.layouts import note_on_diffusers
    from dcae_core.checkpoints.saving import save_autoencoder
    from dcae_core.devices import parse_dtype
    from dcae_core.errors import UsageError, unknown_name
    from dcae_core.zoo import AUTOENCODERS, unknown_model

    if to not in LAYOUTS:
        raise unknown_name("--to", to, LAYOUTS)
    if name is not None and name not in AUTOENCODERS:
        raise unknown_model(name, list(AUTOENCODERS))
    stored_dtype = parse_dtype(dtype)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty directory; choose another -o")
    files = locate_autoencoder(model, revision)
    network = read_autoencoder(files)
    save_autoencoder(network, output, layout=to, name=name or files.name, dtype=stored_dtype)
    note = note_on_diffusers(network.config) if to == DIFFUSERS else None
    if json:
        facts = {"source": str(files.where), "source_layout": files.layout, "layout": to, "output": str(output)}
        print_json(facts | ({"note": note} if note else {}))
    else:
        if note:
            typer.echo(f"dcae: note: {note}", err=True)
        typer.echo(f"{files.where} ({files.layout}) -> {output} ({to}, {dtype})")
