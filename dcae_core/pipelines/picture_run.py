"""Picture files through one or several autoencoders into an output directory: what `dcae reconstruct` does."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dcae_core.data.latent_file import Origin, save_latent
from dcae_core.data.pictures import DEFAULT_MAX_PIXELS, center_crop_adm
from dcae_core.data.png import write_png
from dcae_core.data.raster import Raster
from dcae_core.data.sources import PictureReference
from dcae_core.errors import UsageError
from dcae_core.files import replace_file
from dcae_core.metrics.reconstruction import psnr_by_rows, ssim_by_rows
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.comparison import Column, compare
from dcae_core.pipelines.encoder import load_encoder
from dcae_core.pipelines.memory import choose_tile
from dcae_core.pipelines.picture_result import PictureResult
from dcae_core.pipelines.reconstruct import Progress, check_tile, decode_rows, encode_rows
from dcae_core.zoo import EMBEDDED_AUTOENCODER

_SMALLEST_FOR_SSIM = 6


@dataclass(frozen=True)
class RunModel:
    """An autoencoder of a run.

    Attributes:
        given: what it was called on the command line; "" for the embedded one.
        label: what tables, captions and file names call it; unique in the run.
        network: ready for inference.
        fingerprint: of its weights.
    """

    given: str
    label: str
    network: Autoencoder
    fingerprint: str


@dataclass(frozen=True)
class RunSettings:
    """What a run does with every picture.

    Attributes:
        output: directory to write.
        resolution: side of the central square that is cut first; None takes whole pictures.
        tile: side of the tiles in pixels; None leaves it to the memory of the machine.
        save_latents: also write the latents.
        compare: also write the comparison.
        apply_exif: turn pictures upright.
        max_pixels: refuse larger pictures.
    """

    output: Path
    resolution: int | None = None
    tile: int | None = None
    save_latents: bool = False
    compare: bool = True
    apply_exif: bool = True
    max_pixels: int = DEFAULT_MAX_PIXELS


def load_models(
    names: Sequence[str | None],
    *,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    prepare: bool = True,
) -> list[RunModel]:
    """Load the autoencoders of a run, all at once (f32c32: 1.3 GB each in float32); None is the embedded one.

    With `prepare`, float32 on a CPU keeps transformed weights beside them (f32c32: 2.5 GB more).

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    models: list[RunModel] = []
    for name in names:
        network, record = load_encoder(name, device=device, dtype=dtype, revision=revision, prepare=prepare)
        same = sum(model.label.partition("#")[0] == record.name for model in models)
        label = f"{record.name}#{same + 1}" if same else record.name
        assert record.fingerprint is not None
        models.append(RunModel(name or "", label, network, record.fingerprint))
    return models


def check_settings(models: Iterable[RunModel], settings: RunSettings) -> None:
    """Refuse what a model of the run cannot do.

    Raises:
        UsageError: the tile is too small, or the resolution is no multiple of the compression ratio.
    """
    for model in models:
        ratio = model.network.spatial_compression_ratio
        if settings.tile is not None:
            check_tile(settings.tile, ratio)
        if settings.resolution is not None and settings.resolution % ratio:
            raise UsageError(f"--resolution {settings.resolution} is not a multiple of {ratio}, as {model.label} needs")


def save_raster(picture: Raster, path: Path) -> str:
    """Write a picture as PNG, whole or not at all; return the path.

    Raises:
        ResourceError: the disk is full, or the place cannot be written to.
    """
    with replace_file(path) as file:
        write_png(picture, file)
    return str(path)


def reconstruct_file(
    reference: PictureReference,
    name: str,
    models: Sequence[RunModel],
    settings: RunSettings,
    progress: Callable[[RunModel], Progress | None] = lambda model: None,
) -> list[PictureResult]:
    """One picture file through every model of the run, with all files written.

    Costs one model's activations for a tile, and before that decoding the picture, 4 bytes a pixel. Pictures beyond
    11 million pixels, and their reconstructions, wait in files without names in the output directory.

    Args:
        reference: the picture.
        name: what its outputs are called.
        models: of the run.
        settings: of the run.
        progress: gives for a model what is called after each tile.

    Raises:
        DataError: the picture cannot be read.
        ResourceError: an output cannot be written.
        CheckpointError: a model gives NaN.
    """
    original = _read(reference, settings)
    results, columns = [], []
    for model in models:
        stem = f"{name}.{model.label}" if len(models) > 1 else name
        result, reconstruction = _reconstruct_one(reference, original, model, settings, stem, progress(model))
        results.append(result)
        if settings.compare:
            columns.append(Column(reconstruction, result.caption()))
    if settings.compare:
        caption = (Path(name).name, f"{original.width} x {original.height}")
        path = settings.output / f"{name}.compare.png"
        with replace_file(path) as file:
            compare(original, caption, columns).save(file, "PNG")
        for result in results:
            result.files["comparison"] = str(path)
    return results


def _read(reference: PictureReference, settings: RunSettings) -> Raster:
    picture = reference.open(apply_exif=settings.apply_exif, max_pixels=settings.max_pixels)
    if settings.resolution is not None:
        picture = center_crop_adm(picture, settings.resolution)
    return Raster.of_image(picture, settings.output)


def _reconstruct_one(
    reference: PictureReference,
    original: Raster,
    model: RunModel,
    settings: RunSettings,
    stem: str,
    progress: Progress | None,
) -> tuple[PictureResult, Raster]:
    size = (original.height, original.width)
    tile = settings.tile or choose_tile(model.network, *size)
    reconstruction = Raster(*size, settings.output)
    start = time.perf_counter()
    latent = encode_rows(model.network, original.rows, size, tile=tile, progress=progress)
    for rows in decode_rows(model.network, latent, size, tile=tile, progress=progress):
        reconstruction.append(rows)
    milliseconds = 1000 * (time.perf_counter() - start)
    files = {"reconstruction": save_raster(reconstruction, settings.output / f"{stem}.recon.png")}
    if settings.save_latents:
        path = settings.output / f"{stem}.latent.safetensors"
        origin = Origin(*size, model.given or EMBEDDED_AUTOENCODER, model.fingerprint, tile)
        save_latent(path, latent, origin, model.network.spatial_compression_ratio)
        files["latent"] = str(path)
    psnr, ssim = _measure(original, reconstruction)
    result = PictureResult(
        picture=reference.name,
        model=model.label,
        width=original.width,
        height=original.height,
        latent_shape=tuple(latent.shape),
        psnr=psnr,
        ssim=ssim,
        milliseconds=milliseconds,
        tile=tile,
        files=files,
    )
    return result, reconstruction


def _measure(original: Raster, reconstruction: Raster) -> tuple[float, float | None]:
    """PSNR, and SSIM where the picture is large enough."""

    def read(top: int, bottom: int) -> tuple[torch.Tensor, torch.Tensor]:
        return original.rows(top, bottom)[None], reconstruction.rows(top, bottom)[None]

    shape = torch.Size((1, 3, original.height, original.width))
    large_enough = min(original.height, original.width) >= _SMALLEST_FOR_SSIM
    return float(psnr_by_rows(read, shape)), float(ssim_by_rows(read, shape)) if large_enough else None
