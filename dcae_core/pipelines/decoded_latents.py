"""Latent files back into images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcae_core.checkpoints.autoencoders import find_without_asking
from dcae_core.data.latent_file import StoredLatents, check_latents, read_latents
from dcae_core.data.raster import Raster
from dcae_core.data.sources import ImageReference
from dcae_core.errors import DataError, printable
from dcae_core.pipelines.image_files import RunModel, require_own, save_raster
from dcae_core.pipelines.image_inputs import RECONSTRUCTION_SUFFIX, name_outputs
from dcae_core.pipelines.tiling import MIN_TILE, check_tile, choose_tile, decode_rows
from dcae_core.progress import ProgressCallback

_SUFFIXES = (".safetensors", ".latent")


@dataclass(frozen=True)
class DecodedLatent:
    """One latent of the file `latents`, decoded into the image `file` by the autoencoder labelled `model`."""

    latents: str
    model: str
    width: int
    height: int
    file: str

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


def name_decoded(paths: Sequence[Path]) -> list[str]:
    """What the images of each latent file are called: its stem, with more of its path where several are the same."""
    places = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([place.parent for place in places]) if places else ""
    keys = [place.with_name(f"{_stem(place)}.png").relative_to(common).as_posix() for place in places]
    return [name.removesuffix(".png") for name in name_outputs([ImageReference(key, key) for key in keys])]


def decode_file(
    path: Path,
    name: str,
    model: str | None,
    load: Callable[[str], RunModel],
    output: Path,
    tile: int | None,
    progress: ProgressCallback | None = None,
) -> list[DecodedLatent]:
    """Decode every latent of one file; `NAME.latent.safetensors` becomes `NAME.recon.png`, samples are numbered.

    Args:
        path: the file.
        name: what its images are called.
        model: the autoencoder; None takes the one that the file names, if nobody has to be asked for it.
        load: gives the model of a name; "" is the embedded one.
        output: directory to write.
        tile: side of the tiles; None takes that of the encoding, or leaves it to the memory of the machine.
        progress: called after each tile of each latent.

    Raises:
        DataError: the file is none, or belongs to another autoencoder.
        UsageError: the tile is too small, or an image that we did not make would be replaced.
    """
    stored = read_latents(path)
    autoencoder = load(_model_of(path, stored) if model is None else model)
    network = autoencoder.network
    ratio = network.spatial_compression_ratio
    check_latents(
        path,
        stored,
        network.latent_channels,
        ratio,
        autoencoder.fingerprint,
        autoencoder.encoder_fingerprint,
    )
    height, width = _image_size(stored, ratio)
    recorded = stored.origin.tile if stored.origin else None
    if recorded is not None and recorded < MIN_TILE * ratio:
        raise DataError(f"{path} names a tile of {recorded} pixels, too small for {autoencoder.label}: give --tile")
    tile = tile or recorded or choose_tile(network, height, width)
    if tile is not None:
        check_tile(tile, ratio)
    decoded = []
    for index, latent in enumerate(stored.latents):
        number = "" if stored.origin else f"_{index:04d}"
        place = output / f"{name}{number}{RECONSTRUCTION_SUFFIX}"
        require_own(place)
        image = Raster(height, width, output)
        for rows in decode_rows(network, latent, (height, width), tile=tile, progress=progress):
            image.append(rows)
        file = save_raster(image, place)
        decoded.append(DecodedLatent(str(path), autoencoder.label, width, height, file))
    return decoded


def _model_of(path: Path, stored: StoredLatents) -> str:
    """The autoencoder that a file names. A stranger's file must not decide what is asked from the hub.

    Raises:
        DataError: it is neither embedded, nor a released one, nor on this disk.
    """
    named = stored.origin.model if stored.origin else ""
    place = find_without_asking(named)
    if place is None:
        raise DataError(f"{path} was made by {printable(named)}, which is not here: give the autoencoder with --model")
    return place


def _image_size(stored: StoredLatents, ratio: int) -> tuple[int, int]:
    if stored.origin is not None:
        return stored.origin.height, stored.origin.width
    return stored.latents.shape[2] * ratio, stored.latents.shape[3] * ratio


def _stem(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
