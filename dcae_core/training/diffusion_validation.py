"""Looking at a diffusion model on the way: a grid from the same noise each time, and FID now and then."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.checkpoints.diffusion import DiffusionParts
from dcae_core.data.pictures import uint8_to_picture
from dcae_core.distributed import any_process, gather_objects, is_main, rank, world_size
from dcae_core.files import make_directory, replace_file
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.inception_features import InceptionExtractor, load_inception
from dcae_core.metrics.reference import read_reference
from dcae_core.models.denoisers import build_denoiser
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings, draw_classes
from dcae_core.recipes.train_diffusion import FidSettings, SamplingSettings
from dcae_core.training.diffusion_recipe import sample_settings
from dcae_core.training.parallel import whole

_NUM_FEATURES = 2048


class SamplingValidation:
    """Draws `samples/step_N.png`, and measures FID where that is due.

    Args:
        parts: everything of the diffusion model; the network is replaced by the one that is measured.
        settings: how many pictures, how often.
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
        pictures = list(self._sample(pipeline, self._grid_classes(), settings.guidance_scale, lambda _: True, stop))
        if stop():
            return
        pixels = torch.cat(pictures)
        columns = next(n for n in range(1, len(pixels) + 1) if n * n >= len(pixels))
        missing = -len(pixels) % columns
        pixels = torch.cat([pixels, torch.full((missing, *pixels.shape[1:]), 255, dtype=torch.uint8)])
        rows = [torch.cat(list(row), dim=2) for row in pixels.split(columns)]
        with replace_file(make_directory(self._samples) / f"step_{step}.png") as file:
            uint8_to_picture(torch.cat(rows, dim=1)).save(file, "PNG")

    def _grid_classes(self) -> list[int]:
        if self._settings.classes:
            return self._settings.classes
        num_classes, num = max(1, self._parts.config.num_classes), self._settings.num_pictures
        return [place * num_classes // num for place in range(num)]

    def _sample(
        self,
        pipeline: DiffusionPipeline,
        classes: list[int],
        guidance_scale: float,
        is_mine: Callable[[int], bool],
        stop: Callable[[], bool],
    ) -> Iterator[Tensor]:
        """uint8 pictures (n, 3, H, W), batch by batch, until `stop` turns true."""
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
        classes = draw_classes(fid.num_pictures, self._parts.config.num_classes, self._settings.seed)
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
