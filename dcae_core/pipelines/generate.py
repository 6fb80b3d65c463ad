"""From classes to images: noise by seed and number, guided sampling in batches of one shape, decoding."""

import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from dcae_core.checkpoints.autoguidance import read_weaker_network
from dcae_core.checkpoints.denoiser_files import EMA
from dcae_core.checkpoints.denoisers import DiffusionParts, locate_diffusion, read_diffusion
from dcae_core.data.class_names import parse_classes
from dcae_core.data.images import tensor_to_uint8, uint8_to_image
from dcae_core.devices import parse_dtype, select_device
from dcae_core.diffusion.guidance import guide, sample_noise
from dcae_core.diffusion.samplers import find_sampler, guidance_times, run_sampler
from dcae_core.errors import CheckpointError, ResourceError, UsageError, is_out_of_memory
from dcae_core.models.compilation import CompileMode
from dcae_core.models.configs import DenoiserConfig
from dcae_core.models.inference import for_run
from dcae_core.pipelines.tiling import MIN_TILE, decode_latent
from dcae_core.progress import ProgressCallback
from dcae_core.recipes.settings import MAX_STEPS
from dcae_core.zoo import SamplingDefaults

_log = logging.getLogger(__name__)

CPU_BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 8, 64
_DEFAULT_NUM, _MAX_SAMPLES = 16, 100_000_000
_DECODE_BATCH_SIZE = {"cpu": 1}
_DECODE_BATCH_SIZE_ELSEWHERE = 8
_STEPS_OF_DOPRI5 = 50  # about: it chooses them itself
_OUT_OF_MEMORY = "out of memory while {}; take a smaller --batch-size, --dtype bf16, or a smaller model"


@dataclass(frozen=True)
class SampleSettings:
    """How to sample.

    Attributes:
        guidance_scale: of classifier-free guidance; 1 is none.
        seed: of the noise; sample i's depends on it and on i alone.
        sampler: a name of `diffusion.SAMPLERS`; None is the published one for the network's kind of prediction.
        num_steps: None is the sampler's default.
        guidance_interval: where to guide between data (0) and noise (1), see `guidance_times`; None is everywhere.
    """

    guidance_scale: float = 1.0
    seed: int = 0
    sampler: str | None = None
    num_steps: int | None = None
    guidance_interval: tuple[float, float] | None = None

    @classmethod
    def of_model(
        cls,
        defaults: SamplingDefaults,
        guidance_scale: float | None = None,
        seed: int = 0,
        sampler: str | None = None,
        num_steps: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> "SampleSettings":
        """What is asked for, and the model's own defaults where that is None; its steps belong to its sampler."""
        if sampler in (None, defaults.sampler):
            sampler, num_steps = defaults.sampler, defaults.num_steps if num_steps is None else num_steps
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        return cls(scale, seed, sampler, num_steps, guidance_interval)

    def check(self, prediction: str, config: DenoiserConfig, *, autoguided: bool = False) -> None:
        """Refuse, before any weights are read, what a network of this kind cannot be asked for.

        `autoguided`: whether a weaker network takes the place of the prediction without classes.

        Raises:
            UsageError: an unknown or unfitting sampler, no steps, a guidance scale that is no finite number, a
                negative seed, guidance of a network without classes, or an interval that is none.
        """
        sampler = find_sampler(self.sampler, prediction)
        if self.num_steps is not None:
            if sampler.num_steps is None:
                raise UsageError("sampler dopri5 chooses its own steps; leave their number out")
            if not 1 <= self.num_steps <= MAX_STEPS:
                raise UsageError(f"steps must be at least 1 and at most {MAX_STEPS:,}, not {self.num_steps}")
        if not math.isfinite(self.guidance_scale):
            raise UsageError(f"the guidance scale must be a finite number, not {self.guidance_scale}")
        if self.guidance_scale == 1 and (autoguided or self.guidance_interval is not None):
            raise UsageError("autoguidance and a guidance interval change nothing at a guidance scale of 1; raise it")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            low, high = self.guidance_interval
            raise UsageError(f"a guidance interval goes from 0 (data) to 1 (noise) at most, upwards; not {low}:{high}")
        if self.guidance_scale != 1 and config.num_classes == 0 and not autoguided:
            raise UsageError("this network has no classes to guide towards; leave the guidance scale at 1")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"the seed must be 0 to 2^63 - 1, not {self.seed}")


class Generated(NamedTuple):
    """What `generate` returns: an image for each sample, and float32 latents (N, C, h, w) on the CPU, unscaled."""

    images: list[Image.Image]
    latents: Tensor


@dataclass(frozen=True)
class SampleBatch:
    """Finished samples, on the CPU.

    Attributes:
        number: of the batch in the run.
        indices: the samples' numbers in the run.
        latents: float32 (n, C, h, w), unscaled.
        pixels: uint8 (n, 3, H, W).
    """

    number: int
    indices: range
    latents: Tensor
    pixels: Tensor


def draw_classes(num: int, num_classes: int, seed: int) -> list[int]:
    """The labels of the published sampling protocol: uniform, from PyTorch's CPU generator; zeros without classes.

    Raises:
        UsageError: fewer than one, or more than anybody will sample.
    """
    if not 1 <= num <= _MAX_SAMPLES:
        raise UsageError(f"the number of samples must be at least 1 and at most {_MAX_SAMPLES:,}, not {num}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, max(1, num_classes), (num,), generator=generator).tolist()


def default_classes(
    defaults: SamplingDefaults, num_classes: int, class_names: Sequence[str] | None, seed: int
) -> list[int]:
    """What a model draws where nobody says: the classes chosen for it, or 16 random ones."""
    if defaults.classes is None:
        return draw_classes(_DEFAULT_NUM, num_classes, seed)
    return parse_classes(",".join(defaults.classes), num_classes, class_names)


def load_diffusion(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    autoencoder: str | Path | None = None,
    weights: str = EMA,
    revision: str | None = None,
    autoguidance: str | Path | None = None,
    compile: CompileMode = "auto",
) -> "DiffusionPipeline":
    """Load a diffusion model and its autoencoder, ready to generate.

    Holds one copy of the weights (the largest released one: 6.3 GB in float32, and its autoencoder).

    Args:
        model: a zoo name, a hub id, a directory laid out like the hub's, a run of `dcae train-diffusion`, or a weights
            file of a released network; None is the embedded model, which draws emoji.
        device: where to compute.
        dtype: of both networks, such as `torch.bfloat16` or "bf16"; float32 if None.
        autoencoder: another place to take the autoencoder from, as for `load_autoencoder`.
        weights: "ema" or "raw", where a training directory has both.
        revision: of a hub repository.
        autoguidance: a weaker model, found as `model` is, that guidance leads away from instead of the prediction
            without classes (arXiv 2406.02507).
        compile: "auto", "always" or "never": whether networks run compiled, see `models.compilation`.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit, the autoencoder makes other latents, or the weaker model
            has another task.
        DownloadError: the files are not cached and cannot be downloaded.
        ResourceError: this machine has no such device.
    """
    files = locate_diffusion(model, revision, weights)
    weaker_files = None if autoguidance is None else locate_diffusion(autoguidance, weights=weights)
    place = select_device(str(device))
    number_type = parse_dtype(dtype) if isinstance(dtype, str) else dtype
    weaker = None if weaker_files is None else read_weaker_network(weaker_files, files, place, number_type)
    parts = read_diffusion(files, autoencoder=autoencoder, device=place, dtype=number_type)
    for line in parts.warnings:
        _log.warning(line)
    return DiffusionPipeline(parts, weaker, compile=compile)


class DiffusionPipeline:
    """A diffusion network and its autoencoder.

    Attributes:
        denoiser: called as `denoiser(x, t, y)`.
        weaker: a network that guidance leads away from; None is the same one without classes.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        class_names: one for each class, where the model says.
        defaults: what it draws, and how, where nobody says otherwise.
        scaling_factor: latents are divided by it before they are decoded, where they have no mean and deviation for
            each channel.
        tile: side in pixels of the tiles that images are decoded in; None decodes them whole. Set on its own once
            memory has run out.
    """

    def __init__(
        self, parts: DiffusionParts, weaker: nn.Module | None = None, *, compile: CompileMode = "auto"
    ) -> None:
        self._compile: CompileMode = compile
        self.denoiser, self.weaker = parts.denoiser, weaker
        self.autoencoder = parts.autoencoder
        self.prediction = parts.prediction
        self.scaling_factor, self._unscale = parts.scaling_factor, parts.unscale
        self.config, self.class_names, self.defaults = parts.config, parts.class_names, parts.sampling
        self.tile: int | None = None
        weight = next(parts.denoiser.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    def generate(
        self,
        classes: Sequence[int],
        guidance_scale: float | None = None,
        seed: int = 0,
        *,
        num_steps: int | None = None,
        sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        batch_size: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Generated:
        """Make one image for each class; for a network without classes, for each entry of `classes`.

        Args:
            classes: numbers in 0..num_classes-1.
            guidance_scale: of classifier-free guidance; 1 is none, and half the cost. None is 1, or what is best
                for the embedded model.
            seed: of the noise; sample i's depends on it and on i alone.
            num_steps: None is the sampler's default.
            sampler: a name of `diffusion.SAMPLERS`; None is the model's default: the published one for this network.
            guidance_interval: where to guide between data (0) and noise (1), see `guidance_times`; None is everywhere.
            batch_size: samples at once; None tries until memory suffices. It moves float32 results by about 1e-6.
            progress: called after each step of each batch.

        Raises:
            UsageError: a class, sampler, scale, interval or number of steps that this network cannot do.
            ResourceError: even one sample does not fit into memory.
        """
        settings = SampleSettings.of_model(self.defaults, guidance_scale, seed, sampler, num_steps, guidance_interval)
        autoguided = self.weaker is not None and settings.guidance_scale != 1
        settings.check(self.prediction, self.config, autoguided=autoguided)
        batches = list(self.generate_batches(classes, settings, batch_size=batch_size, progress=progress))
        images = [uint8_to_image(pixels) for batch in batches for pixels in batch.pixels]
        return Generated(images, torch.cat([batch.latents for batch in batches]))

    def generate_batches(
        self,
        classes: Sequence[int],
        settings: SampleSettings,
        *,
        batch_size: int | None = None,
        skip: Callable[[int], bool] = lambda number: False,
        progress: ProgressCallback | None = None,
    ) -> Iterator[SampleBatch]:
        """As `generate`, batch by batch: for runs longer than memory, or shared by several processes.

        Batch k holds the samples k * batch_size onwards. All batches have the same shape, the last one padded, so a
        batch's bytes do not depend on which others are computed.

        Args:
            classes: of all samples of the run.
            settings: how to sample.
            batch_size: samples at once; None finds one, but then every process of a group may find another.
            skip: skip(k) leaves batch k out.
            progress: called after each step of each batch.

        Raises:
            UsageError: an unknown class, no samples, or no batch size.
            ResourceError: even one sample does not fit into memory.
        """
        self._require_classes(classes)
        if batch_size is None:
            batch_size = self.find_batch_size(len(classes), settings)
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        batch_size = min(batch_size, len(classes))
        shape = (self.config.in_channels, *self.config.latent_size)
        interval = self._network_interval(settings)
        self._make_ready(-(-len(classes) // batch_size), batch_size, settings)
        for number, start in enumerate(range(0, len(classes), batch_size)):
            if skip(number):
                continue
            count = min(batch_size, len(classes) - start)
            # Padding repeats the last class and takes the numbers beyond, so that no batch has a shape of its own.
            padded = range(start, start + batch_size)
            noise = partial(sample_noise, settings.seed, padded, shape)
            with _explained_out_of_memory(f"sampling {batch_size} images at once"), torch.inference_mode():
                latents = run_sampler(
                    settings.sampler,
                    self._guided([classes[min(index, len(classes) - 1)] for index in padded], settings),
                    noise().to(self._device),
                    prediction=self.prediction,
                    num_steps=settings.num_steps,
                    step_noise=noise,
                    breaks=interval or (),
                    progress=progress,
                )
            _require_finite(latents)
            latents = self._unscale(latents[:count])
            yield SampleBatch(number, padded[:count], latents.cpu(), self._decode(latents))

    def _make_ready(self, num_batches: int, batch_size: int, settings: SampleSettings) -> None:
        """Take the networks that a run of so many batches should use."""
        usual = find_sampler(settings.sampler, self.prediction).num_steps or _STEPS_OF_DOPRI5
        evaluations = settings.num_steps or usual
        self.denoiser = for_run(self.denoiser, num_batches * evaluations, self._compile)
        if self.weaker is not None:
            self.weaker = for_run(self.weaker, num_batches * evaluations, self._compile)
        decoded_at_once = min(batch_size, self._decode_batch_size)
        self.autoencoder = for_run(self.autoencoder, num_batches * batch_size / decoded_at_once, self._compile)

    def find_batch_size(self, num: int, settings: SampleSettings) -> int:
        """The largest batch size, starting from a generous one and halving, whose first evaluation fits into memory.

        Costs one evaluation of the network on accelerators, nothing on a CPU. ResourceError if not even one fits.
        """
        if self._device.type == "cpu":
            return min(num, CPU_BATCH_SIZE)
        size = min(num, ACCELERATOR_BATCH_SIZE)
        while True:
            try:
                x = torch.zeros(size, self.config.in_channels, *self.config.latent_size, device=self._device)
                with torch.inference_mode():
                    self._guided([0] * size, settings)(x, torch.tensor(0.5, device=self._device))
                return size
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ResourceError(_OUT_OF_MEMORY.format("sampling one image")) from error
                size //= 2
                _free_memory()

    def _require_classes(self, classes: Sequence[int]) -> None:
        if len(classes) == 0:
            raise UsageError("no classes were given, so there is nothing to sample")
        last = max(1, self.config.num_classes) - 1
        for number in classes:
            if int(number) != number or not 0 <= number <= last:
                raise UsageError(f"class {number} does not exist: this network knows 0 to {last}")

    def _guided(self, classes: Sequence[int], settings: SampleSettings) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided network; the state stays in float32 whatever the network computes in."""
        labels = torch.tensor(list(classes), device=self._device)
        scale, interval = settings.guidance_scale, self._network_interval(settings)
        return guide(self.denoiser, labels, self.config.num_classes, scale, interval, self._dtype, self.weaker)

    def _network_interval(self, settings: SampleSettings) -> tuple[float, float] | None:
        interval = settings.guidance_interval
        return None if interval is None else guidance_times(self.prediction, interval)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (n, C, h, w) -> uint8 (n, 3, H, W) on the CPU; in smaller tiles once memory has run out."""
        while True:
            try:
                return self._decode_whole(latents) if self.tile is None else self._decode_tiled(latents)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                ratio = self.autoencoder.spatial_compression_ratio
                smaller = (self.tile or max(self.config.latent_size) * ratio) // 2
                if smaller < MIN_TILE * ratio:
                    raise ResourceError(_OUT_OF_MEMORY.format("decoding in the smallest tiles")) from error
                self.tile = smaller
                _free_memory()

    @property
    def _decode_batch_size(self) -> int:
        return _DECODE_BATCH_SIZE.get(self._device.type, _DECODE_BATCH_SIZE_ELSEWHERE)

    def _decode_whole(self, latents: Tensor) -> Tensor:
        """In parts of one shape, the last one padded."""
        missing = -len(latents) % self._decode_batch_size
        padded = torch.cat([latents, latents[-1:].expand(missing, -1, -1, -1)]).to(self._dtype)
        parts = padded.split(self._decode_batch_size)
        return torch.cat([tensor_to_uint8(self.autoencoder.decode(part)).cpu() for part in parts])[: len(latents)]

    def _decode_tiled(self, latents: Tensor) -> Tensor:
        ratio = self.autoencoder.spatial_compression_ratio
        size = (latents.shape[2] * ratio, latents.shape[3] * ratio)
        return torch.stack([decode_latent(self.autoencoder, latent.cpu(), size, tile=self.tile) for latent in latents])


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _explained_out_of_memory(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(_OUT_OF_MEMORY.format(doing)) from error


def _require_finite(latents: Tensor) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise CheckpointError(
            "the samples are not finite: this network's values exceed what its number type can hold; "
            "take --dtype bf16 or fp32"
        )
