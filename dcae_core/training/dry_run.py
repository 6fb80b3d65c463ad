"""`--dry-run`: everything that can go wrong with a training, before it begins."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.data.batches import BatchPlan
from dcae_core.distributed import world_size
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import build_on_meta
from dcae_core.models.denoiser import DenoiserConfig
from dcae_core.recipes.train_ae import PhaseSettings, TrainAutoencoderRecipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import LatentKind, autoencoder_config_of, denoiser_config_of, open_latents
from dcae_core.training.parallel import checkpoint_activations
from dcae_core.training.resuming import find_checkpoint
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.train_ae import RunOptions, TrainingImages, train_autoencoder
from dcae_core.training.train_diffusion import DiffusionRunOptions, load_batches, train_diffusion
from dcae_core.training.trained_parts import blocks_of, count_trained, set_training_mode, train_only

_GRADIENT, _ADAM, _AVERAGE = 4, 8, 4  # bytes for each trained parameter


@dataclass(frozen=True)
class MemoryEstimate:
    """In bytes, for one process without sharding.

    Attributes:
        weights: of the whole network, float32.
        training: gradients, optimiser and average of what is trained.
        activations: what the backward pass of one part of a batch keeps, float32 (about half in 16-bit types).
    """

    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        """All of it. The networks that losses look through come on top."""
        return self.weights + self.training + self.activations


def estimate_memory(network: nn.Module, x: Tensor, *, ema: bool) -> MemoryEstimate:
    """Run a network on the meta device and add up.

    Args:
        network: on the meta device, with `requires_grad` and training mode as they will be.
        x: its input, on the meta device.
        ema: weights are averaged.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    per_parameter = _GRADIENT + _ADAM + (_AVERAGE if ema else 0)
    return MemoryEstimate(4 * sum(size for size, _ in sizes), per_parameter * trained, saved_bytes(network, x))


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def available_memory(device: torch.device) -> int:
    """Free bytes on a device; for CPUs what the operating system would give without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


_LOADER_SECONDS = 3.0


@dataclass(frozen=True)
class PhaseForecast:
    """What one phase will be like.

    Attributes:
        name: of the phase.
        parts: what it trains.
        num_trained: parameters that it trains.
        num_parameters: of the whole network.
        memory: of one process.
    """

    name: str
    parts: tuple[str, ...]
    num_trained: int
    num_parameters: int
    memory: MemoryEstimate


@dataclass(frozen=True)
class Forecast:
    """What a training will be like.

    Attributes:
        phases: one after the other.
        available: bytes free on the device now.
        num_images: found.
        loader_images_per_second: what the loader alone delivers.
        damaged: lines about damaged images among those that were looked at.
        continues_from: the checkpoint that the run would go on from, or None.
        seconds_per_step: of one step of each phase, the first included; None where it does not fit into memory.
    """

    phases: list[PhaseForecast]
    available: int
    num_images: int
    loader_images_per_second: float
    damaged: list[str]
    continues_from: Path | None
    seconds_per_step: dict[str, float] | None


def forecast(recipe: TrainAutoencoderRecipe, options: RunOptions) -> Forecast:
    """Look at everything a training needs; do one step of each phase if memory allows. Leaves nothing behind.

    Raises:
        DcaeError: whatever would end the training: data, weights, memory, a run directory that is another run's.
    """
    phases = [forecast_phase(recipe, phase) for phase in recipe.phases]
    checkpoint = None
    if Path(recipe.run_dir).is_dir():
        checkpoint = find_checkpoint(RunDirectory(Path(recipe.run_dir)), options.resume)
    undecoded = recipe.data.model_copy(update={"decoded_cache": None})
    images = TrainingImages(undecoded)
    rate, damaged = _measure_loader(images, recipe)
    available = available_memory(options.device)
    seconds = None
    if max(phase.memory.total for phase in phases) < available:
        seconds = dict(_try_each_phase(recipe.model_copy(update={"data": undecoded}), options))
    return Forecast(phases, available, len(images), rate, damaged, checkpoint, seconds)


def forecast_phase(recipe: TrainAutoencoderRecipe, phase: PhaseSettings) -> PhaseForecast:
    """Count a phase's parameters and estimate its memory, on the meta device."""
    network = build_on_meta(autoencoder_config_of(recipe.network))
    train_only(network, phase.parts, phase.adjacent_stages)
    set_training_mode(network)
    if recipe.execution.activation_checkpointing:
        checkpoint_activations(blocks_of(network))
    part = BatchPlan(phase.batch_size, phase.accumulation, world_size()).largest_piece
    x = torch.empty(part, 3, phase.resolution, phase.resolution, device="meta")
    memory = estimate_memory(network, x, ema=phase.ema is not None)
    return PhaseForecast(phase.name, phase.parts, *count_trained(network), memory)


def _measure_loader(images: TrainingImages, recipe: TrainAutoencoderRecipe) -> tuple[float, list[str]]:
    """Images per second of the first phase's loader, and the damaged images that it met."""
    phase = recipe.phases[0]
    plan, steps = BatchPlan(phase.batch_size), range(phase.steps)
    with closing(images.batches(phase.resolution, (recipe.seed,), plan, steps)) as batches:
        damaged = list(next(batches).damaged)  # starting the workers does not count
        start, num_seen = time.perf_counter(), 0
        for batch in batches:
            num_seen += len(batch.names)
            damaged += batch.damaged
            if time.perf_counter() - start > _LOADER_SECONDS:
                break
        return num_seen / (time.perf_counter() - start), list(dict.fromkeys(damaged))


def _try_each_phase(recipe: TrainAutoencoderRecipe, options: RunOptions) -> Iterator[tuple[str, float]]:
    for phase in recipe.phases:
        with tempfile.TemporaryDirectory() as folder:
            single = recipe.model_copy(
                update={
                    "run_dir": folder,
                    "network": recipe.network.model_copy(update={"init": "random"}),
                    "phases": [phase.model_copy(update={"steps": 1})],
                    "validation": None,
                    "latent_statistics_images": 1,
                }
            )
            start = time.perf_counter()
            train_autoencoder(single, RunOptions(options.device))
            yield phase.name, time.perf_counter() - start


_LOADER_BATCHES = 20


@dataclass(frozen=True)
class DiffusionForecast:
    """What a training will be like.

    Attributes:
        num_parameters: that are trained.
        memory: of one process, without sharding.
        available: bytes free on the device now.
        num_latents: in the dataset.
        loader_latents_per_second: what the loader alone delivers.
        continues_from: the checkpoint that the run would go on from, or None.
        seconds_per_step: of the start and one step; None where it does not fit into memory.
    """

    num_parameters: int
    memory: MemoryEstimate
    available: int
    num_latents: int
    loader_latents_per_second: float
    continues_from: Path | None
    seconds_per_step: float | None


def forecast_diffusion(recipe: TrainDiffusionRecipe, options: DiffusionRunOptions) -> DiffusionForecast:
    """Look at everything a training needs; do one step if memory allows. Leaves nothing behind.

    Raises:
        DcaeError: whatever would end the training: latents, memory, a run directory that is another run's.
    """
    dataset = open_latents(recipe)
    config = denoiser_config_of(recipe, LatentKind.of(dataset))
    with torch.device("meta"):
        network = build_denoiser(config)
    memory = count_memory(network, config, recipe)
    checkpoint = None
    if Path(recipe.run_dir).is_dir():
        checkpoint = find_checkpoint(RunDirectory(Path(recipe.run_dir)), options.resume)
    start = time.perf_counter()
    seen = sum(len(batch.names) for batch in islice(load_batches(recipe, dataset, config, 0), _LOADER_BATCHES))
    rate = seen / (time.perf_counter() - start)
    available = available_memory(options.device)
    seconds = _try_a_step(recipe, options) if memory.total < available else None
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return DiffusionForecast(trained, memory, available, len(dataset), rate, checkpoint, seconds)


def count_memory(network: nn.Module, config: DenoiserConfig, recipe: TrainDiffusionRecipe) -> MemoryEstimate:
    """What a step of a recipe needs, without allocating it; `network` is that of `config`, on the meta device."""
    part = BatchPlan(recipe.batch_size, recipe.accumulation, world_size()).largest_piece
    x = torch.empty(part, config.in_channels, *config.latent_size, device="meta")
    return estimate_memory(_WithTimes(network), x, ema=recipe.ema is not None)


class _WithTimes(nn.Module):
    """A network called as one of a single argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        times = x.new_zeros(len(x))
        return self.network(x, times, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def _try_a_step(recipe: TrainDiffusionRecipe, options: DiffusionRunOptions) -> float:
    with tempfile.TemporaryDirectory() as folder:
        single = recipe.model_copy(update={"run_dir": folder, "steps": 1, "sampling": None})
        start = time.perf_counter()
        train_diffusion(single, DiffusionRunOptions(options.device))
        return time.perf_counter() - start
