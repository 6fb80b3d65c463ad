"""Image files through an autoencoder and back."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo

from dcae_core.data.images import DEFAULT_MAX_PIXELS, center_crop_adm
from dcae_core.data.latent_file import Origin, save_latent
from dcae_core.data.raster import MAKER, Raster, is_own_png, write_png
from dcae_core.data.sources import ImageReference
from dcae_core.errors import UsageError
from dcae_core.files import replace_file
from dcae_core.metrics.reconstruction import psnr_by_rows, ssim_by_rows
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.compilation import CompileMode
from dcae_core.models.inference import for_run
from dcae_core.pipelines.comparison import Column, compare
from dcae_core.pipelines.encode import load_encoder
from dcae_core.pipelines.image_inputs import COMPARISON_SUFFIX, RECONSTRUCTION_SUFFIX
from dcae_core.pipelines.tiling import check_tile, choose_tile, decode_rows, encode_rows
from dcae_core.progress import ProgressCallback
from dcae_core.zoo import EMBEDDED_AUTOENCODER


@dataclass(frozen=True)
class ImageResult:
    """One image through one autoencoder.

    Attributes:
        model: the autoencoder's label.
        width: in pixels, as `height`.
        latent_shape: (C, h, w).
        psnr: in dB; infinite for an equal image.
        ssim: None for an image with a side shorter than 6 pixels.
        milliseconds: for encoding and decoding, without files and metrics.
        enlarged: whether the image was smaller than the square that was cut from it.
        tile: side of the tiles; None for whole.
        files: what was written: "reconstruction", "comparison", "latent".
    """

    image: str
    model: str
    width: int
    height: int
    latent_shape: tuple[int, ...]
    psnr: float
    ssim: float | None
    milliseconds: float
    enlarged: bool
    tile: int | None
    files: dict[str, str]

    @property
    def compression(self) -> float:
        """How many times fewer values the latent has than the image."""
        channels, height, width = self.latent_shape
        return 3 * self.width * self.height / (channels * height * width)

    def as_json(self) -> dict[str, Any]:
        """As plain values; an infinite PSNR is None, as JSON has no infinity."""
        return {
            "image": self.image,
            "model": self.model,
            "width": self.width,
            "height": self.height,
            "latent": list(self.latent_shape),
            "compression": self.compression,
            "psnr": self.psnr if isfinite(self.psnr) else None,
            "ssim": self.ssim,
            "milliseconds": self.milliseconds,
            "enlarged": self.enlarged,
            "tile": self.tile,
            "files": self.files,
        }

    def caption(self) -> tuple[str, ...]:
        """What a comparison says under it."""
        latent = " x ".join(map(str, self.latent_shape))
        quality = f"PSNR {self.psnr:.2f} dB"
        if self.ssim is not None:
            quality += f", SSIM {self.ssim:.3f}"
        return (self.model, f"latent {latent}, {self.compression:.0f} times fewer values", quality)


@dataclass(frozen=True)
class ModelMean:
    """Means of the figures of one model; `ssim` is over the images that have one, None where none has."""

    model: str
    num_images: int
    compression: float
    psnr: float
    ssim: float | None
    milliseconds: float

    def as_json(self) -> dict[str, Any]:
        """As plain values; an infinite PSNR is None."""
        return vars(self) | {"psnr": self.psnr if isfinite(self.psnr) else None}


def mean_results(results: Iterable[ImageResult]) -> list[ModelMean]:
    """The means over all images, for each model in the order of the run."""
    by_model: dict[str, list[ImageResult]] = {}
    for result in results:
        by_model.setdefault(result.model, []).append(result)
    return [_mean(model, own) for model, own in by_model.items()]


def _mean(model: str, results: Sequence[ImageResult]) -> ModelMean:
    ssims = [result.ssim for result in results if result.ssim is not None]
    return ModelMean(
        model,
        len(results),
        compression=fmean(result.compression for result in results),
        psnr=fmean(result.psnr for result in results),
        ssim=fmean(ssims) if ssims else None,
        milliseconds=fmean(result.milliseconds for result in results),
    )


_SMALLEST_FOR_SSIM = 6


@dataclass(frozen=True)
class RunModel:
    """An autoencoder of a run, ready for inference.

    Attributes:
        given: what it was called on the command line; "" for the embedded one.
        label: what tables, captions and file names call it; unique in the run.
        fingerprint: of its weights.
        encoder_fingerprint: of its encoder's alone; None where it has none of its own.
    """

    given: str
    label: str
    network: Autoencoder
    fingerprint: str
    encoder_fingerprint: str | None


@dataclass(frozen=True)
class RunSettings:
    """What a run does with every image.

    Attributes:
        output: directory to write.
        resolution: side of the central square that is cut first; None takes whole images.
        tile: side of the tiles in pixels; None leaves it to the memory of the machine.
        apply_exif: turn images upright.
        max_pixels: refuse larger images.
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
        models.append(RunModel(name or "", label, network, record.fingerprint, record.encoder_fingerprint))
    return models


def make_ready(models: Sequence[RunModel], num_images: int, settings: RunSettings, mode: CompileMode) -> list[RunModel]:
    """The networks that a run over so many images should use.

    UsageError where they are to be compiled for images that may each have a size of their own.
    """
    has_one_size = settings.resolution is not None or settings.tile is not None
    if mode == "always" and not has_one_size:
        raise UsageError("--compile always is for images of one size: give --resolution or --tile")
    num_calls = num_images if has_one_size else 0
    return [replace(model, network=for_run(model.network, num_calls, mode)) for model in models]


def check_settings(models: Iterable[RunModel], settings: RunSettings) -> None:
    """Refuse, with UsageError, a tile that is too small for a model of the run, or a resolution that does not fit."""
    for model in models:
        ratio = model.network.spatial_compression_ratio
        if settings.tile is not None:
            check_tile(settings.tile, ratio)
        if settings.resolution is not None and settings.resolution % ratio:
            raise UsageError(f"--resolution {settings.resolution} is not a multiple of {ratio}, as {model.label} needs")


def check_outputs(names: Iterable[str], models: Sequence[RunModel], settings: RunSettings) -> None:
    """Refuse, with UsageError and before any work, to replace an image that we did not make."""
    for name in names:
        for stem in _stems(name, models):
            require_own(settings.output / f"{stem}{RECONSTRUCTION_SUFFIX}")
        if settings.compare:
            require_own(settings.output / f"{name}{COMPARISON_SUFFIX}")


def require_own(path: Path) -> None:
    """Refuse, with UsageError, to replace a file that is there and does not say that we made it."""
    if os.path.lexists(path) and not (path.is_file() and is_own_png(path)):
        raise UsageError(f"{path} is there already and was not made by dcae: move it, or choose another -o")


def _stems(name: str, models: Sequence[RunModel]) -> list[str]:
    """What the files of one image are called for each model."""
    return [f"{name}.{model.label}" if len(models) > 1 else name for model in models]


def save_raster(image: Raster, path: Path) -> str:
    """Write an image as PNG, whole or not at all; return the path."""
    with replace_file(path) as file:
        write_png(image, file)
    return str(path)


def reconstruct_file(
    reference: ImageReference,
    name: str,
    models: Sequence[RunModel],
    settings: RunSettings,
    progress: Callable[[RunModel], ProgressCallback | None] = lambda model: None,
    *,
    time_again: bool = False,
) -> list[ImageResult]:
    """One image file through every model of the run, with all files written; they are called after `name`.

    Costs one model's activations for a tile, and before that decoding the image, 4 bytes a pixel. Images beyond
    11 million pixels, and their reconstructions, wait in files without names in the output directory. `progress` gives
    for a model what is called after each tile. `time_again` is for a run's first image, for which kernels and memory
    were set up: where that may be a large part of the time, compute once more for the time alone.

    Raises:
        DataError: the image cannot be read.
        ResourceError: an output cannot be written.
        CheckpointError: a model gives NaN.
    """
    original, enlarged = read_input(reference, settings)
    results, columns = [], []
    for model, stem in zip(models, _stems(name, models), strict=True):
        computed = _compute(original, model, settings, progress(model))
        reconstruction = computed.reconstruction
        result = _save(reference, original, model, settings, stem, computed, enlarged=enlarged)
        results.append(result)
        if settings.compare:
            columns.append(Column(reconstruction, result.caption()))
    if settings.compare:
        caption = (Path(name).name, f"{original.width} x {original.height}")
        path = settings.output / f"{name}{COMPARISON_SUFFIX}"
        with replace_file(path) as file:
            made_by = PngInfo()
            made_by.add_text(*MAKER)
            compare(original, caption, columns).save(file, "PNG", pnginfo=made_by)
        for result in results:
            result.files["comparison"] = str(path)
    if time_again:
        results = [_time_again(original, *pair, settings) for pair in zip(models, results, strict=True)]
    return results


_WARM_UP_MATTERS_BELOW = 2000.0  # milliseconds: setting up costs a few hundred


def _time_again(original: Raster, model: RunModel, result: ImageResult, settings: RunSettings) -> ImageResult:
    if result.milliseconds >= _WARM_UP_MATTERS_BELOW:
        return result
    return replace(result, milliseconds=_compute(original, model, settings, None).milliseconds)


def read_input(reference: ImageReference, settings: RunSettings) -> tuple[Raster, bool]:
    """The image as the run takes it, and whether it had to be enlarged for that; DataError where it cannot be read."""
    image = reference.open(apply_exif=settings.apply_exif, max_pixels=settings.max_pixels)
    enlarged = settings.resolution is not None and min(image.size) < settings.resolution
    if settings.resolution is not None:
        image = center_crop_adm(image, settings.resolution)
    return Raster.of_image(image, settings.output), enlarged


@dataclass(frozen=True)
class _Computed:
    """What one model makes of an image, and how long that took."""

    latent: torch.Tensor
    reconstruction: Raster
    tile: int | None
    milliseconds: float


def _compute(original: Raster, model: RunModel, settings: RunSettings, progress: ProgressCallback | None) -> _Computed:
    size = (original.height, original.width)
    tile = settings.tile or choose_tile(model.network, *size)
    reconstruction = Raster(*size, settings.output)
    start = time.perf_counter()
    latent = encode_rows(model.network, original.rows, size, tile=tile, progress=progress)
    for rows in decode_rows(model.network, latent, size, tile=tile, progress=progress):
        reconstruction.append(rows)
    return _Computed(latent, reconstruction, tile, 1000 * (time.perf_counter() - start))


def _save(
    reference: ImageReference,
    original: Raster,
    model: RunModel,
    settings: RunSettings,
    stem: str,
    computed: _Computed,
    *,
    enlarged: bool,
) -> ImageResult:
    """Write what was computed, and measure it."""
    latent, tile, reconstruction = computed.latent, computed.tile, computed.reconstruction
    files = {"reconstruction": save_raster(reconstruction, settings.output / f"{stem}{RECONSTRUCTION_SUFFIX}")}
    if settings.save_latents:
        path = settings.output / f"{stem}.latent.safetensors"
        origin = Origin(
            original.height,
            original.width,
            model.given or EMBEDDED_AUTOENCODER,
            model.fingerprint,
            tile,
            model.encoder_fingerprint,
        )
        save_latent(path, latent, origin, model.network.spatial_compression_ratio)
        files["latent"] = str(path)
    psnr, ssim = _measure(original, reconstruction)
    return ImageResult(
        image=reference.name,
        model=model.label,
        width=original.width,
        height=original.height,
        latent_shape=tuple(latent.shape),
        psnr=psnr,
        ssim=ssim,
        milliseconds=computed.milliseconds,
        enlarged=enlarged,
        tile=tile,
        files=files,
    )


def _measure(original: Raster, reconstruction: Raster) -> tuple[float, float | None]:
    """PSNR, and SSIM where the image is large enough."""

    def read(top: int, bottom: int) -> tuple[torch.Tensor, torch.Tensor]:
        return original.rows(top, bottom)[None], reconstruction.rows(top, bottom)[None]

    shape = torch.Size((1, 3, original.height, original.width))
    large_enough = min(original.height, original.width) >= _SMALLEST_FOR_SSIM
    return float(psnr_by_rows(read, shape)), float(ssim_by_rows(read, shape)) if large_enough else None
