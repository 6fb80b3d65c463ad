"""`dcae convert`: an autoencoder from one layout to another, or a diffusion model to our own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcae_cli.completion import complete_model
from dcae_cli.options import Debug, Dtype, Json, Revision

if TYPE_CHECKING:
    import torch


def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="Zoo name, hub id, local directory, weights file or run of a training.",
            metavar="MODEL",
            autocompletion=complete_model,
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
    code. A network that a layout cannot express is refused. A diffusion model, such as a run of `dcae train-diffusion`,
    goes into our own layout, with its averaged weights alone.

    \b
    Examples:
      dcae convert dc-ae-f32c32-in-1.0 --to diffusers -o f32-diffusers
      dcae convert f32-diffusers --to original --name dc-ae-f32c32-in-1.0 -o f32-original
      dcae convert model.pt --to dcae --dtype fp16 -o f32-half
      dcae convert runs/my-run --to dcae --dtype fp16 -o my-model
    """
    from dcae_cli.output import print_json
    from dcae_core.checkpoints.autoencoders import LAYOUTS
    from dcae_core.checkpoints.denoisers import is_diffusion_model
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
    if is_diffusion_model(model):
        facts = _convert_diffusion(model, to, output, name, stored_dtype, revision)
    else:
        facts = _convert_autoencoder(model, to, output, name, stored_dtype, revision)
    if json:
        print_json(facts)
    else:
        if note := facts.get("note"):
            typer.echo(f"dcae: note: {note}", err=True)
        layout = f" ({facts['source_layout']})" if "source_layout" in facts else ""
        typer.echo(f"{facts['source']}{layout} -> {output} ({to}, {dtype})")


def _convert_autoencoder(
    model: str, to: str, output: Path, name: str | None, dtype: "torch.dtype", revision: str | None
) -> dict[str, str]:
    from dcae_core.checkpoints.autoencoders import DIFFUSERS, locate_autoencoder, read_autoencoder
    from dcae_core.checkpoints.layouts import note_on_diffusers
    from dcae_core.checkpoints.saving import save_autoencoder

    files = locate_autoencoder(model, revision)
    network = read_autoencoder(files)
    save_autoencoder(network, output, layout=to, name=name or files.name, dtype=dtype)
    note = note_on_diffusers(network.config) if to == DIFFUSERS else None
    facts = {"source": str(files.where), "source_layout": files.layout, "layout": to, "output": str(output)}
    return facts | ({"note": note} if note else {})


def _convert_diffusion(
    model: str, to: str, output: Path, name: str | None, dtype: "torch.dtype", revision: str | None
) -> dict[str, str]:
    from dcae_core.checkpoints.autoencoders import OWN
    from dcae_core.checkpoints.denoisers import locate_diffusion
    from dcae_core.checkpoints.saving import save_diffusion
    from dcae_core.errors import UsageError

    if to != OWN:
        raise UsageError(f"{model} is a diffusion model, which goes into our own layout alone; give --to {OWN}")
    if name is not None:
        raise UsageError("--name is for autoencoders; a diffusion model is called what its directory is")
    files = locate_diffusion(model, revision)
    save_diffusion(files, output, dtype=dtype, in_parts=True)
    return {"source": str(files.where), "layout": to, "output": str(output)}
