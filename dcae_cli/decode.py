"""`dcae decode`: saved latents back into images."""

from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from dcae_cli.options import Debug, Device, Dtype, Json, Model, Output, Revision
from dcae_cli.progress import progress, report_failure
from dcae_core.progress import Advance


def decode(
    latents: Annotated[
        list[Path], typer.Argument(help="Files that `dcae reconstruct --save-latents` wrote.", metavar="LATENTS")
    ],
    model: Model = None,
    output: Output = Path("out"),
    tile: Annotated[
        int | None, typer.Option(min=1, help="Side of the tiles; left out: as when encoding.", metavar="PIXELS")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    revision: Revision = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decode latents into images of the original size; writes NAME.recon.png for NAME.latent.safetensors.

    Without --model the autoencoder that made a latent is taken; one with another encoder is refused.

    \b
    Examples:
      dcae decode out/photo.latent.safetensors -o decoded
      dcae decode out/*.latent.safetensors --model dc-ae-f32c32-in-1.0
    """
    from dcae_cli.output import print_json, print_table
    from dcae_core.devices import parse_dtype, select_device
    from dcae_core.errors import DataError
    from dcae_core.files import make_directory
    from dcae_core.pipelines.decoded_latents import DecodedLatent, decode_file, name_decoded
    from dcae_core.pipelines.image_files import RunModel, load_models

    number_type, chosen = parse_dtype(dtype), select_device(device)

    @cache
    def load(name: str) -> RunModel:
        return load_models([name or None], device=chosen, dtype=number_type, revision=revision)[0]

    make_directory(output)
    decoded: list[DecodedLatent] = []
    problems: list[DataError] = []
    with progress("decode", total=len(latents), unit="files") as advance:
        for path, name in zip(latents, name_decoded(latents), strict=True):
            note_tile = partial(_note_tile, advance, path.name)
            try:
                decoded += decode_file(path, name, model, load, output, tile, note_tile)
            except DataError as error:
                if len(latents) == 1:
                    raise
                problems.append(error)
                report_failure(error)
            advance(1)
    if json:
        print_json({"results": [one.as_json() for one in decoded], "failed": [str(error) for error in problems]})
    elif decoded:
        rows = [(one.latents, one.model, f"{one.width} x {one.height}", one.file) for one in decoded]
        print_table("", ("latents", "model", "size", "image"), rows)
    if problems:
        raise DataError(f"{len(problems)} of {len(latents)} files failed, as reported above; the others are done")


def _note_tile(advance: Advance, name: str, done: int, total: int) -> None:
    advance(0, note=f"{name}: tile {done}/{total}")
