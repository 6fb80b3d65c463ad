"""Looking at a network on the way: reconstructions of held-out images, or samples."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dcae_core.checkpoints.denoisers import DiffusionParts
from dcae_core.data.images import center_crop_adm, image_to_tensor, tensor_to_uint8, uint8_to_image
from dcae_core.data.sources import ImageList, ImageReference
from dcae_core.distributed import all_reduce_sum, any_process, gather_objects, is_main, rank, world_size
from dcae_core.errors import DataError
from dcae_core.files import make_directory, replace_file
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.inception import InceptionExtractor, load_inception
from dcae_core.metrics.lpips import LPIPS, load_lpips
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.metrics.reference import read_reference
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.comparison import image_grid
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings, draw_classes
from dcae_core.recipes.train_ae import ValidationSettings
from dcae_core.recipes.train_diffusion import FidSettings, SamplingSettings
from dcae_core.training.checks import sample_settings
from dcae_core.training.parallel import whole

_NUM_FEATURES = 2048


class ReconstructionValidation:
    """Reconstructs held-out images (ADM centre crop) and measures them; every figure on 8-bit pixels.

    PSNR, SSIM and LPIPS are per image, then averaged; rFID is between all images and all reconstructions.
    Images are decoded anew each time; processes share them.

    Args:
        images: at least one.
        settings: how many, how large, which figures.
        samples: where grids go, as `step_N.png`.
        device: where the networks that judge images go.

    Raises:
        DownloadError: weights that a figure needs are neither cached nor to be had.
    """

    def __init__(self, images: ImageList, settings: ValidationSettings, samples: Path, device: torch.device) -> None:
        self._images = images[: settings.num_images]
        self._settings, self._samples, self._device = settings, samples, device
        self._lpips: LPIPS | None = load_lpips("alex", device=device) if settings.lpips else None
        self._inception: InceptionExtractor | None = None
        if settings.fid:
            weights = Path(settings.inception_weights) if settings.inception_weights is not None else None
            self._inception = load_inception(weights, device=device)

    @torch.no_grad()
    def measure(self, network: Autoencoder, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """The figures, or None where `stop` turned true on the way; draws the grid.

        Raises:
            DataError: not one of the images can be decoded.
        """
        sums: dict[str, Tensor] = {}
        features = [GaussianStatistics(_NUM_FEATURES), GaussianStatistics(_NUM_FEATURES)]
        drawn: list[tuple[Tensor, Tensor]] = []
        mine = self._images[rank() :: world_size()]
        for start in range(0, len(mine), self._settings.batch_size):
            if stop():
                break
            x = self._decode(mine[start : start + self._settings.batch_size])
            if x is None:
                continue
            before, after = tensor_to_uint8(x), tensor_to_uint8(network(x))
            for name, value in self._judge(before, after).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().sum().cpu()
            if self._inception is not None:
                for statistics, pixels in zip(features, (before, after), strict=True):
                    statistics.update(self._inception(pixels).features)
            drawn += zip(before.cpu(), after.cpu(), strict=True)
            drawn = drawn[: self._settings.num_grid_images]
        if any_process(stop()):
            return None
        figures = self._average(sums)
        if self._inception is not None:
            figures["rfid"] = _distance(*features)
        if is_main() and drawn:
            self._draw(drawn, step)
        return figures

    def _decode(self, images: list[ImageReference]) -> Tensor | None:
        """(B, 3, R, R) in [-1, 1] of those that can be decoded."""
        crops = [crop for image in images if (crop := self._crop(image)) is not None]
        return torch.stack([image_to_tensor(crop) for crop in crops]).to(self._device) if crops else None

    def _crop(self, image: ImageReference) -> Image.Image | None:
        try:
            return center_crop_adm(image.open(), self._settings.resolution)
        except DataError:
            return None

    def _judge(self, before: Tensor, after: Tensor) -> dict[str, Tensor]:
        """One value per image and figure."""
        figures = {
            "count": torch.ones(len(before)),
            # Equal images have an infinite PSNR, which would hide all others in the mean.
            "psnr": psnr(before, after).clamp(max=100.0),
            "ssim": ssim(before, after),
        }
        if self._lpips is not None:
            figures["lpips"] = self._lpips(before.float() / 127.5 - 1, after.float() / 127.5 - 1)
        return figures

    def _average(self, sums: dict[str, Tensor]) -> dict[str, float]:
        names = ["count", "psnr", "ssim", *(["lpips"] if self._lpips is not None else [])]
        totals = all_reduce_sum(torch.stack([sums.get(name, torch.zeros((), dtype=torch.float64)) for name in names]))
        if not totals[0]:
            raise DataError("not one of the validation images can be decoded")
        return dict(zip(names[1:], (totals[1:] / totals[0]).tolist(), strict=True))

    def _draw(self, pairs: list[tuple[Tensor, Tensor]], step: int) -> None:
        """Inputs above reconstructions."""
        rows = [torch.cat([pair[row] for pair in pairs], dim=2) for row in (0, 1)]
        path = make_directory(self._samples) / f"step_{step}.png"
        with replace_file(path) as file:
            uint8_to_image(torch.cat(rows, dim=1)).save(file, "PNG")


def _distance(images: GaussianStatistics, reconstructions: GaussianStatistics) -> float:
    """Fréchet distance between what all processes saw."""
    gaussians = []
    for mine in (images, reconstructions):
        first, *others = gather_objects(mine)
        for other in others:
            first.merge(other)
        gaussians.append(Gaussian(first.mean, first.covariance))
    return frechet_distance(*gaussians)


class SamplingValidation:
    """Draws `samples/step_N.png`, and measures FID where that is due.

    Args:
        parts: everything of the diffusion model; the network is replaced by the one that is measured.
        settings: how many images, how often.
        last_step: of the run: everything is done once more there.
        samples: where grids go.
    """

    def __init__(self, parts: DiffusionParts, settings: SamplingSettings, last_step: int, samples: Path) -> None:
        self._parts, self._settings, self._last_step, self._samples = parts, settings, last_step, samples
        self._extractor: InceptionExtractor | None = None

    def measure(self, network: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """FID if it is due, or None where `stop` turned true on the way; draws the grid."""
        pipeline = DiffusionPipeline(replace(self._parts, denoiser=self._unspread(network)))
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
        grid = image_grid(map(uint8_to_image, pixels), len(pixels))
        with replace_file(make_directory(self._samples) / f"step_{step}.png") as file:
            grid.save(file, "PNG")

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
        settings: SampleSettings = sample_settings(self._settings, guidance_scale)
        batches = pipeline.generate_batches(
            classes, settings, batch_size=self._settings.batch_size, skip=lambda number: stop() or not is_mine(number)
        )
        for batch in batches:
            yield batch.pixels

    def _measure_fid(
        self, pipeline: DiffusionPipeline, fid: FidSettings, stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        device = next(pipeline.denoiser.parameters()).device
        if self._extractor is None:
            weights = Path(fid.inception_weights) if fid.inception_weights is not None else None
            self._extractor = load_inception(weights, device=device)
        classes = draw_classes(fid.num_images, self._parts.config.num_classes, self._settings.seed)
        statistics = GaussianStatistics(_NUM_FEATURES)
        share = range(rank(), len(classes), world_size())
        for pixels in self._sample(pipeline, classes, fid.guidance_scale, share.__contains__, stop):
            statistics.update(self._extractor(pixels.to(device)).features)
        if any_process(stop()):
            return None
        total = GaussianStatistics(_NUM_FEATURES)
        for part in gather_objects(statistics):
            total.merge(part)
        reference = read_reference(Path(fid.reference)).gaussian
        return {"fid": frechet_distance(Gaussian(total.mean, total.covariance), reference)}
