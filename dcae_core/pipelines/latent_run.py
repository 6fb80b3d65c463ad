"""Latent files back into picture files: what `dcae decode` does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcae_core.data.latent_file import StoredLatents, check_latents, load_latents
from dcae_core.data.raster import Raster
from dcae_core.pipelines.memory import choose_tile
from dcae_core.pipelines.picture_run import RunModel, save_raster
from dcae_core.pipelines.reconstruct import check_tile, decode_rows

_SUFFIXES = (".safetensors", ".latent")


@dataclass(frozen=True)
class DecodedLatent:
    """One latent that was decoded.

    Attributes:
        latents: the file it comes from.
        model: label of the autoencoder.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        file: the picture.
    """

    latents: str
    model: str
    width: int
    height: int
    file: str

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return dict(vars(self))


def decode_file(
    path: Path, model: str | None, load: Callable[[str], RunModel], output: Path, tile: int | None
) -> list[DecodedLatent]:
    """Decode every latent of one file; `NAME.latent.safetensors` becomes `NAME.recon.png`, samples are numbered.

    Args:
        path: the file.
        model: the autoencoder; None takes the one that the file names.
        load: gives the model of a name; "" is the embedded one.
        output: directory to write.
        tile: side of the tiles; None takes that of the encoding, or leaves it to the memory of the machine.

    Raises:
        DataError: the file is none, or belongs to another autoencoder.
        UsageError: the tile is too small.
    """
    stored = load_latents(path)
    named = stored.origin.model if stored.origin else ""
    autoencoder = load(named if model is None else model)
    network = autoencoder.network
    ratio = network.spatial_compression_ratio
    check_latents(path, stored, network.latent_channels, ratio, autoencoder.fingerprint)
    height, width = _picture_size(stored, ratio)
    tile = tile or (stored.origin.tile if stored.origin else None) or choose_tile(network, height, width)
    if tile is not None:
        check_tile(tile, ratio)
    decoded = []
    for index, latent in enumerate(stored.latents):
        picture = Raster(height, width, output)
        for rows in decode_rows(network, latent, (height, width), tile=tile):
            picture.append(rows)
        number = "" if stored.origin else f"_{index:04d}"
        file = save_raster(picture, output / f"{_stem(path)}{number}.recon.png")
        decoded.append(DecodedLatent(str(path), autoencoder.label, width, height, file))
    return decoded


def _picture_size(stored: StoredLatents, ratio: int) -> tuple[int, int]:
    if stored.origin is not None:
        return stored.origin.height, stored.origin.width
    return stored.latents.shape[2] * ratio, stored.latents.shape[3] * ratio


def _stem(path: Path) -> str:
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
