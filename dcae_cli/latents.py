"""`dcae latents`: what a latent dataset holds, whether it is whole, and the layouts of other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dcae_cli.completion import complete_model
from dcae_cli.options import Debug, Json

latents = typer.Typer(add_completion=False, rich_markup_mode=None)

_Dataset = Annotated[str, typer.Argument(help="A latent dataset: a directory or an fsspec URL.", metavar="LATENTS")]
_Out = Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="DIR")]


@latents.callback(invoke_without_command=True)
def require_command(context: typer.Context, json: Json = False, debug: Debug = False) -> None:
    """Look at a latent dataset, prove it, and move it to and from other programs.

    \b
    Examples:
      dcae latents info LATENTS
      dcae latents verify LATENTS
      dcae latents export LATENTS --to webdataset -o tars
      dcae latents import NPY --layout npy --model dc-ae-f32c32-in-1.0 --resolution 512 -o LATENTS
    """
    from dcae_core.errors import UsageError

    if context.invoked_subcommand is None:
        raise UsageError("missing command: info, verify, export or import; example: dcae latents info LATENTS")


@latents.command(short_help="What made a dataset, and what it holds.")
def info(dataset: _Dataset, json: Json = False, debug: Debug = False) -> None:
    """Tell what made a dataset and what it holds, from its manifest alone; --json also has every encoding setting.

    \b
    Examples:
      dcae latents info LATENTS
      dcae latents info s3://bucket/latents --json
    """
    from dcae_cli.output import print_json, print_table, show_value
    from dcae_core.data.latents import LatentDataset

    manifest = LatentDataset(dataset).manifest
    statistics = manifest.statistics
    facts = {
        "encoder": manifest.encoder.describe(),
        "scaling_factor": manifest.scaling_factor,
        "latents": manifest.count,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "latent_shape": list(manifest.latent_shape),
        "dtype": manifest.dtype,
        "classes": len(manifest.classes),
        "transform": manifest.transform.model_dump(),
        "encoding": manifest.encoding,
        "damaged": len(manifest.damaged),
        "mean": statistics.mean if statistics else None,
        "rms": statistics.rms if statistics else None,
        "channel_mean": statistics.channel_mean if statistics else [],
        "channel_deviation": statistics.channel_std if statistics else [],
    }
    if json:
        print_json(facts)
        return
    rows = [(key.replace("_", " "), show_value(value)) for key, value in facts.items() if key != "encoding"]
    print_table("", ("", dataset), rows)


@latents.command(short_help="Prove every checksum, shape, label and count.")
def verify(dataset: _Dataset, json: Json = False, debug: Debug = False) -> None:
    """Read every byte once: checksums, then shapes, number types, labels and counts against the manifest.

    \b
    Example:
      dcae latents verify LATENTS
    """
    prove_dataset(dataset, json)


def prove_dataset(dataset: str, as_json: bool) -> None:
    """Print that a dataset is whole, or end with DataError and its first fault."""
    from dcae_cli.output import print_json
    from dcae_cli.progress import progress
    from dcae_core.data.latents import verify_dataset
    from dcae_core.errors import DataError

    with progress("verify", total=None, unit="shards") as advance:
        manifest, faults = verify_dataset(dataset, advance)
    if as_json:
        print_json({"latents": manifest.count, "shards": len(manifest.shards), "faults": faults})
    if faults:
        more = f" (and {len(faults) - 1} more faults; --json lists them all)" if len(faults) > 1 else ""
        raise DataError(faults[0] + more)
    if not as_json:
        print(f"{dataset}: {manifest.count} latents in {len(manifest.shards)} shards, every checksum is right")


@latents.command(short_help="Write a dataset in another program's layout.")
def export(
    dataset: _Dataset,
    to: Annotated[
        str, typer.Option(help="npy (scaled, a file each, as published) or webdataset (unscaled).", metavar="LAYOUT")
    ],
    output: _Out,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a dataset as <class>/<name>.npy files, which the published training reads, or as WebDataset tars.

    \b
    Examples:
      dcae latents export LATENTS --to npy -o npy
      dcae latents export LATENTS --to webdataset -o tars
    """
    from dcae_cli.output import print_json
    from dcae_cli.progress import progress
    from dcae_core.data.latents import LatentDataset, export_npy, export_webdataset
    from dcae_core.errors import unknown_name

    layouts: dict[str, Callable[..., None]] = {"npy": export_npy, "webdataset": export_webdataset}
    if to not in layouts:
        raise unknown_name("--to", to, layouts)
    opened = LatentDataset(dataset)
    with progress("export", total=len(opened), unit="latents") as advance:
        layouts[to](opened, output, advance=advance)
    if json:
        print_json({"out": str(output), "latents": len(opened)})
    else:
        print(f"{output}: {len(opened)} latents")


@latents.command("import", short_help="Make a dataset of another program's latents.")
def import_latents(
    source: Annotated[Path, typer.Argument(help="The other program's folder.", metavar="FOLDER")],
    layout: Annotated[
        str,
        typer.Option(help="npy (scaled, <class>/<name>.npy, as published) or lightningdit (unscaled).", metavar="NAME"),
    ],
    model: Annotated[
        str,
        typer.Option(help="The autoencoder that made them.", metavar="MODEL", autocompletion=complete_model),
    ],
    resolution: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.", metavar="PIXELS")],
    output: _Out,
    scaling_factor: Annotated[
        float | None, typer.Option(help="Of the autoencoder, where its name does not tell.", metavar="FACTOR")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per shard.", metavar="N")] = 1024,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a latent dataset of latents that another program encoded; stopped, the same command goes on.

    Such files do not say what made them: --model does, by name alone, and a training refuses another.

    \b
    Examples:
      dcae latents import latents/f32 --layout npy --model dc-ae-f32c32-in-1.0 --resolution 512 -o LATENTS
      dcae latents import vavae --layout lightningdit --model va-vae --scaling-factor 1 --resolution 256 -o LATENTS
    """
    import math

    from dcae_cli.output import print_json
    from dcae_cli.progress import progress
    from dcae_core.data.latents import import_lightningdit, import_npy
    from dcae_core.data.latents.manifest import EncoderRecord
    from dcae_core.errors import UsageError, unknown_name
    from dcae_core.pipelines.encode import encoder_name
    from dcae_core.zoo import find_autoencoder

    layouts = {"npy": import_npy, "lightningdit": import_lightningdit}
    if layout not in layouts:
        raise unknown_name("--layout", layout, layouts)
    known = find_autoencoder(model)
    factor = scaling_factor if scaling_factor is not None or known is None else known.scaling_factor
    if factor is None or not (math.isfinite(factor) and factor > 0):
        raise UsageError(f"the scaling factor of {model} is not known: give a number above 0 with --scaling-factor")
    encoder = EncoderRecord(name=known.name if known else encoder_name(model), scaling_factor=factor)
    with progress("import", total=None, unit="latents") as advance:
        manifest = layouts[layout](
            source, output, encoder, resolution=resolution, shard_size=shard_size, advance=advance
        )
    if json:
        print_json({"out": str(output), "latents": manifest.count, "classes": len(manifest.classes)})
    else:
        print(f"{output}: {manifest.count} latents in {len(manifest.shards)} shards, {len(manifest.classes)} classes")
