"""`dcae encode-dataset`: images to a latent dataset, and proof that one is whole."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dcae_cli.latents import prove_dataset
from dcae_cli.options import Alpha, ComputingCompile, Debug, Device, Json, NumProcesses
from dcae_cli.processes import start_processes

_EXAMPLE = "dcae encode-dataset --images IMAGES --out LATENTS --resolution 256"


def encode_dataset(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of a shipped one; options change it.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Folder with a folder per class, glob, file list, tar or parquet.", metavar="PATH"),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Directory of the dataset.", metavar="DIR")] = None,
    model: Annotated[
        str | None, typer.Option(help="Autoencoder: zoo name, hub id or directory.", metavar="MODEL")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of ADM's centre crop, pixels [512].", metavar="N")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Also store every image's mirror image [no].")
    ] = None,
    latent_dtype: Annotated[
        str | None, typer.Option(help="Stored as float16, bfloat16 or float32 [float16].", metavar="TYPE")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Number type of the network [fp32].", metavar="TYPE")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time per process [16].", metavar="N")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Images per shard [1024].", metavar="N")] = None,
    damaged: Annotated[
        str | None, typer.Option(help="Damaged images: skip (and list) or fail [skip].", metavar="POLICY")
    ] = None,
    exif: Annotated[
        bool | None, typer.Option("--exif/--no-exif", help="Turn images upright as EXIF says [yes].")
    ] = None,
    alpha: Alpha = None,
    max_pixels: Annotated[int | None, typer.Option(help="Larger images count as damaged.", metavar="N")] = None,
    workers: Annotated[int | None, typer.Option(help="Decoding threads per process [4].", metavar="N")] = None,
    threads: Annotated[int | None, typer.Option(help="Computing threads per process, CPU [1].", metavar="N")] = None,
    verify: Annotated[
        str | None, typer.Option(help="Prove every checksum of an existing dataset instead.", metavar="DIR")
    ] = None,
    compile: ComputingCompile = None,
    nproc: NumProcesses = 1,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Encode images into a latent dataset, or verify one.

    Stop it at any moment; the same command continues and ends with the same bytes. So does any --nproc: on a CPU give
    the number of cores.

    \b
    dcae encode-dataset --images IMAGES --out LATENTS --resolution 256
    dcae encode-dataset imagenet512-f32 --images imagenet/train --out latents --nproc 8
    dcae encode-dataset --verify LATENTS
    """
    if verify is not None:
        prove_dataset(verify, as_json)
        return
    options = {
        "images": images, "out": out, "model": model, "resolution": resolution, "flipped_copies": flip,
        "latent_dtype": latent_dtype, "dtype": dtype, "batch_size": batch_size, "shard_size": shard_size,
        "damaged": damaged, "apply_exif": exif, "alpha": alpha, "max_pixels": max_pixels, "num_workers": workers,
        "num_threads": threads, "compile": compile,
    }  # fmt: skip
    _encode(recipe, {key: value for key, value in options.items() if value is not None}, nproc, device, as_json)


def _encode(recipe: str | None, options: dict[str, Any], nproc: int, device: str, as_json: bool) -> None:
    start_processes(nproc)

    from dcae_core.distributed import is_main, process_group, world_size
    from dcae_core.errors import UsageError
    from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
    from dcae_core.recipes.loading import load_recipe

    settings = load_recipe(recipe, EncodeDatasetRecipe, options=options)
    for name in ("images", "out"):
        if getattr(settings, name) is None:
            raise UsageError(f"missing --{name}; example: {_EXAMPLE}")

    from dcae_cli.progress import progress
    from dcae_core.data.sources import find_images
    from dcae_core.devices import parse_dtype, select_device
    from dcae_core.pipelines.encode import encode_dataset, load_encoder

    chosen = select_device(device)
    images = find_images([str(settings.images)], skip_damaged=settings.damaged == "skip")
    with progress("loading the weights", total=0):
        network, encoder = load_encoder(settings.model, device=chosen, dtype=parse_dtype(settings.dtype))
    with process_group(chosen):
        copies, processes = 2 if settings.flipped_copies else 1, world_size()
        with progress("encode", total=len(images) * copies // processes, unit="latents") as advance:
            report = encode_dataset(
                images, network, encoder, Path(str(settings.out)), settings, device=chosen, advance=advance
            )
    if is_main():
        _print_report(report, str(settings.out), as_json)


def _print_report(report: Any, out: str, as_json: bool) -> None:
    from dcae_cli.output import print_json, print_table, show_value
    from dcae_cli.progress import warn

    manifest = report.manifest
    facts = {
        "out": out,
        "encoder": manifest.encoder.name,
        "latents": manifest.count,
        "kept": report.kept,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "latent_shape": list(manifest.latent_shape),
        "dtype": manifest.dtype,
        "classes": len(manifest.classes),
        "damaged": [damage.model_dump() for damage in manifest.damaged],
        "mean": manifest.statistics.mean,
        "rms": manifest.statistics.rms,
        "scaling_factor": manifest.scaling_factor,
        "decoder_images_per_second": report.decoder_rate,
        "encoder_images_per_second": report.encoder_rate,
        "encoder_waited": report.waited,
        "warnings": report.warnings,
    }
    if as_json:
        print_json(facts)
        return
    for warning in report.warnings:
        warn(warning)
    for damage in manifest.damaged:
        warn(f"left out: {damage.reason}")
    names = {
        "kept": "of them from before",
        "decoder_images_per_second": "decoding, images/s",
        "encoder_images_per_second": "encoding, images/s",
        "encoder_waited": "time that encoding waited, share",
    }
    shown = [key for key in facts if key not in ("damaged", "warnings")]
    rows = [(names.get(key, key.replace("_", " ")), show_value(facts[key])) for key in shown]
    print_table("", ("", "latent dataset"), rows)
