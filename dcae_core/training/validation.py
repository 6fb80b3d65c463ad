"""Validation during training: reconstructions of held-out images, or samples."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor, nn

from dcae_core.checkpoints.denoisers import DiffusionParts
from dcae_core.data.images import center_crop_adm, image_to_tensor, tensor_to_uint8, uint8_to_image
from dcae_core.data.sources import ImageList, ImageReference
from dcae_core.distributed import any_process, gather_bytes, is_main, rank, world_size
from dcae_core.errors import DataError, SourceLostError
from dcae_core.files import make_directory, replace_file
from dcae_core.metrics.frechet import GaussianStatistics, frechet_distance
from dcae_core.metrics.inception import NUM_FEATURES, ResizeRule, load_inception
from dcae_core.metrics.lpips import LPIPS, load_lpips
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.metrics.reference import read_reference
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.compilation import CompileMode
from dcae_core.pipelines.comparison import image_grid
from dcae_core.pipelines.evaluation.parts import FeatureMeasurement, Part
from dcae_core.pipelines.evaluation.scores import (
    FEATURES,
    ORIGINAL_FEATURES,
    PER_IMAGE,
    Gathered,
    gather,
    gaussian_of,
)
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings, draw_classes
from dcae_core.recipes.train_ae import ValidationSettings
from dcae_core.recipes.train_diffusion import FidSettings, SamplingSettings
from dcae_core.training.checks import sample_settings
from dcae_core.training.parallel import whole


class ReconstructionValidation:
    """Reconstructs held-out images (ADM centre crop) and measures them; every figure on 8-bit pixels.

    PSNR, SSIM and LPIPS are per image, then averaged; rFID is between all images and all reconstructions.
    Images are decoded again each time; processes share them. `grid_of` says where the grid of a step goes.
    """

    def __init__(
        self, images: ImageList, settings: ValidationSettings, grid_of: Callable[[int], Path], device: torch.device
    ) -> None:
        self._images = images[: settings.num_images]
        self._settings, self._grid_of, self._device = settings, grid_of, device
        self._lpips: LPIPS | None = load_lpips("alex", device=device) if settings.lpips else None
        self._features = _open_features(settings.inception_weights, device) if settings.fid else None

    @torch.no_grad()
    def measure(self, network: Autoencoder, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """The figures, or None where `stop` turned true on the way; draws the grid. DataError if no image is good."""
        drawn: list[tuple[Tensor, Tensor]] = []
        share = gather(self._measure_batches(network, drawn, stop), ())
        if any_process(stop()):
            return None
        measured = _merge_processes(share)
        if not measured.count:
            raise DataError("not one of the validation images can be decoded")
        columns = {name: measured.columns[name] for name in PER_IMAGE if name in measured.columns}
        figures = {name: rows.double().mean().item() for name, rows in columns.items()}
        if self._features is not None:
            figures["rfid"] = frechet_distance(gaussian_of(measured, ORIGINAL_FEATURES), gaussian_of(measured))
        if is_main() and drawn:
            rows = [torch.cat([pair[row] for pair in drawn], dim=2) for row in (0, 1)]  # inputs above reconstructions
            _save_grid(uint8_to_image(torch.cat(rows, dim=1)), self._grid_of(step))
        return figures

    def _measure_batches(
        self, network: Autoencoder, drawn: list[tuple[Tensor, Tensor]], stop: Callable[[], bool]
    ) -> Iterator[Part]:
        """What this process measures, until `stop` turns true; the first (input, reconstruction) go to `drawn`."""
        mine = self._images[rank() :: world_size()]
        for start in range(0, len(mine), self._settings.batch_size):
            if stop():
                return
            x = self._decode(mine[start : start + self._settings.batch_size])
            if x is None:
                continue
            before, after = tensor_to_uint8(x), tensor_to_uint8(network(x))
            drawn += zip(before.cpu(), after.cpu(), strict=True)
            del drawn[self._settings.num_grid_images :]
            yield Part(self._judge(before, after), torch.arange(len(before)))

    def _decode(self, images: list[ImageReference]) -> Tensor | None:
        """(B, 3, R, R) in [-1, 1] of those that can be decoded."""
        crops = [crop for image in images if (crop := self._crop(image)) is not None]
        return torch.stack([image_to_tensor(crop) for crop in crops]).to(self._device) if crops else None

    def _crop(self, image: ImageReference) -> Image.Image | None:
        try:
            return center_crop_adm(image.open(), self._settings.resolution)
        except SourceLostError:
            raise
        except DataError:
            return None

    def _judge(self, before: Tensor, after: Tensor) -> dict[str, Tensor]:
        """One row per image and figure."""
        # Equal images have an infinite PSNR, which would hide all others in the mean.
        rows = {"psnr": psnr(before, after).clamp(max=100.0), "ssim": ssim(before, after)}
        if self._lpips is not None:
            rows["lpips"] = self._lpips(before.float() / 127.5 - 1, after.float() / 127.5 - 1)
        if self._features is not None:
            rows[ORIGINAL_FEATURES] = self._features(before)[FEATURES]
            rows |= self._features(after)
        return {name: values.cpu() for name, values in rows.items()}


def _open_features(weights: str | None, device: torch.device, resize: ResizeRule = "half_pixel") -> FeatureMeasurement:
    inception = load_inception(Path(weights) if weights is not None else None, device=device)
    return FeatureMeasurement(inception, resize=resize)


def _merge_processes(share: Gathered) -> Gathered:
    """What all processes measured together, in the order of their ranks: figures of each image, and Gaussians."""
    tensors = {"count": torch.tensor(share.count)}
    tensors |= {f"columns/{name}": rows.contiguous() for name, rows in share.columns.items()}
    for name, statistics in share.gaussians.items():
        tensors |= {f"gaussians/{name}/{part}": tensor for part, tensor in statistics.as_tensors().items()}
    merged = Gathered()
    for theirs in map(load, gather_bytes(save(tensors))):
        merged.count += int(theirs["count"])
        for name, rows in _below("columns/", theirs).items():
            merged.columns[name] = torch.cat([merged.columns.get(name, rows[:0]), rows])
        for name in {key.partition("/")[0] for key in _below("gaussians/", theirs)}:
            statistics = GaussianStatistics.from_tensors(_below(f"gaussians/{name}/", theirs))
            merged.gaussians.setdefault(name, GaussianStatistics(NUM_FEATURES)).merge(statistics)
    return merged


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _save_grid(grid: Image.Image, path: Path) -> None:
    make_directory(path.parent)
    with replace_file(path) as file:
        grid.save(file, "PNG")


class SamplingValidation:
    """Draws a grid of samples into `grid_of(step)`, and measures FID where that is due and at `last_step`.

    The network in `parts` is replaced by the one that is measured.
    """

    def __init__(
        self,
        parts: DiffusionParts,
        settings: SamplingSettings,
        last_step: int,
        grid_of: Callable[[int], Path],
        compile: CompileMode = "auto",
    ) -> None:
        self._compile = compile
        self._parts, self._settings, self._last_step, self._grid_of = parts, settings, last_step, grid_of
        self._features: FeatureMeasurement | None = None

    def measure(self, network: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """FID if it is due, or None where `stop` turned true on the way; draws the grid."""
        parts = replace(self._parts, denoiser=self._unspread(network))
        pipeline = DiffusionPipeline(parts, compile=self._compile)
        if is_main():
            self._draw_grid(pipeline, step, stop)
        if any_process(stop()):
            return None
        fid = self._settings.fid
        if fid is None or (step % fid.every and step != self._last_step):
            return {}
        return self._measure_fid(pipeline, fid, stop)

    def _unspread(self, network: nn.Module) -> nn.Module:
        """The network itself, or where it is spread over processes a whole copy, since each samples at its own pace."""
        state = network.state_dict()
        complete = {name: whole(value) for name, value in state.items()}
        if all(complete[name] is value for name, value in state.items()):
            return network
        with torch.device("meta"):
            copy = build_denoiser(self._parts.config)
        copy.load_state_dict(complete, assign=True)
        return copy.eval()

    def _draw_grid(self, pipeline: DiffusionPipeline, step: int, stop: Callable[[], bool]) -> None:
        settings = self._settings
        images = list(self._sample(pipeline, self._grid_classes(), settings.guidance_scale, lambda _: True, stop))
        if stop():
            return
        pixels = torch.cat(images)
        _save_grid(image_grid(map(uint8_to_image, pixels), len(pixels)), self._grid_of(step))

    def _grid_classes(self) -> list[int]:
        if self._settings.classes:
            return self._settings.classes
        num_classes, num = max(1, self._parts.config.num_classes), self._settings.num_images
        return [place * num_classes // num for place in range(num)]

    def _sample(
        self,
        pipeline: DiffusionPipeline,
        classes: list[int],
        guidance_scale: float,
        is_mine: Callable[[int], bool],
        stop: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """uint8 images (n, 3, H, W), batch by batch, until `stop` turns true."""
        settings: SampleSettings = sample_settings(
            self._settings, guidance_scale, has_classes=self._parts.config.num_classes > 0
        )
        batches = pipeline.generate_batches(
            classes, settings, batch_size=self._settings.batch_size, skip=lambda number: stop() or not is_mine(number)
        )
        for batch in batches:
            yield batch.pixels

    def _measure_fid(
        self, pipeline: DiffusionPipeline, fid: FidSettings, stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        device = next(pipeline.denoiser.parameters()).device
        reference = read_reference(Path(fid.reference))
        if self._features is None:
            self._features = _open_features(fid.inception_weights, device, reference.resize)
        features = self._features
        classes = draw_classes(fid.num_images, self._parts.config.num_classes, self._settings.seed)
        share = range(rank(), len(classes), world_size())
        images = self._sample(pipeline, classes, fid.guidance_scale, share.__contains__, stop)
        measured = gather((Part(features(pixels.to(device)), torch.arange(len(pixels))) for pixels in images), ())
        if any_process(stop()):
            return None
        return {"fid": frechet_distance(gaussian_of(_merge_processes(measured)), reference.gaussian)}
