"""`--dry-run`: everything that can go wrong with a training, before it begins."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.data.batches import BatchPlan
from dcae_core.devices import memory_of
from dcae_core.distributed import rank, world_size
from dcae_core.limits import free_memory
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import build_on_meta
from dcae_core.models.configs import DenoiserConfig
from dcae_core.recipes.train_ae import PhaseSettings, TrainAutoencoderRecipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import LatentKind, autoencoder_config_of, denoiser_config_of, open_latents
from dcae_core.training.parallel import checkpoint_activations
from dcae_core.training.run import RunOptions, TrainingRecipe, find_checkpoint
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import Batch
from dcae_core.training.train_ae import TrainingImages, train_autoencoder
from dcae_core.training.train_diffusion import PHASE, load_batches, train_diffusion
from dcae_core.training.trained_parts import (
    blocks_of,
    count_trained,
    set_training_mode,
    train_only,
    transformer_blocks,
)

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
    """Run a network and its input on the meta device and add up; `requires_grad` and mode are as in the training."""
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
    free = free_memory()
    return memory_of(device) if free is None else free


_LOADER_SECONDS = 3.0


@dataclass(frozen=True)
class PhaseForecast:
    """What one phase will be like."""

    name: str
    trains: str
    num_trained: int
    num_parameters: int
    memory: MemoryEstimate


@dataclass(frozen=True)
class Forecast:
    """What a training will be like.

    Attributes:
        available: bytes free on the device now.
        items: what it trains on: "images" or "latents".
        num_items: how many were found.
        loader_items_per_second: what the loader alone delivers.
        damaged: lines about damaged tar shards, and damaged images among those that were looked at.
        continues_from: the checkpoint that the run would continue from, or None.
        seconds_per_step: of the start and one step of each phase; None where they do not fit into memory.
    """

    phases: list[PhaseForecast]
    available: int
    items: str
    num_items: int
    loader_items_per_second: float
    damaged: list[str]
    continues_from: Path | None
    seconds_per_step: dict[str, float] | None


def forecast_autoencoder(recipe: TrainAutoencoderRecipe, options: RunOptions) -> Forecast:
    """Look at everything a training needs; do one step of each phase if memory allows. Leaves nothing behind.

    Raises:
        DcaeError: whatever would end the training: data, weights, memory, a run directory that is another run's.
    """
    phases = [forecast_phase(recipe, phase) for phase in recipe.phases]
    checkpoint = _continues_from(recipe, options)
    undecoded = recipe.model_copy(update={"data": recipe.data.model_copy(update={"decoded_cache": None})})
    images, first = TrainingImages(undecoded.data), recipe.phases[0]

    def train_a_step(index: int, folder: str) -> None:
        changes = {
            "run_dir": folder,
            "network": recipe.network.model_copy(update={"init": "random"}),
            "phases": [recipe.phases[index].model_copy(update={"steps": 1})],
            "validation": None,
            "latent_statistics_images": 1,
        }
        train_autoencoder(undecoded.model_copy(update=changes), RunOptions(options.device))

    batches = images.batches(first.resolution, (recipe.seed,), BatchPlan(first.batch_size), range(first.steps))
    rate, damaged = _measure_loader(batches)
    available, seconds = _try_each_phase(phases, options.device, train_a_step)
    return Forecast(phases, available, "images", len(images), rate, images.damaged + damaged, checkpoint, seconds)


def forecast_diffusion(recipe: TrainDiffusionRecipe, options: RunOptions) -> Forecast:
    """The same for a diffusion model, with the same errors."""
    dataset = open_latents(recipe)
    config = denoiser_config_of(recipe, LatentKind.of(dataset))
    with torch.device("meta"):
        network = build_denoiser(config)
    memory = count_memory(network, config, recipe)
    trains = f"{config.architecture} ({recipe.objective})"
    phases = [PhaseForecast(PHASE, trains, *count_trained(network), memory)]
    checkpoint = _continues_from(recipe, options)

    def train_a_step(_index: int, folder: str) -> None:
        single = recipe.model_copy(update={"run_dir": folder, "steps": 1, "sampling": None})
        train_diffusion(single, RunOptions(options.device))

    plan = BatchPlan(recipe.batch_size, recipe.accumulation, world_size(), rank())
    rate, damaged = _measure_loader(load_batches(recipe, dataset, config, plan, range(recipe.steps)))
    available, seconds = _try_each_phase(phases, options.device, train_a_step)
    return Forecast(phases, available, "latents", len(dataset), rate, damaged, checkpoint, seconds)


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
    return PhaseForecast(phase.name, ", ".join(phase.parts), *count_trained(network), memory)


def count_memory(network: nn.Module, config: DenoiserConfig, recipe: TrainDiffusionRecipe) -> MemoryEstimate:
    """What a step of a recipe needs, without allocating it; `network` is that of `config`, on the meta device."""
    if recipe.execution.activation_checkpointing:
        checkpoint_activations(transformer_blocks(network))
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


def _continues_from(recipe: TrainingRecipe, options: RunOptions) -> Path | None:
    path = Path(recipe.run_dir)
    return find_checkpoint(RunDirectory(path), options.resume) if path.is_dir() else None


def _measure_loader(batches: Iterator[Batch]) -> tuple[float, list[str]]:
    """Items per second, for a few seconds at most, and the damaged images among them."""
    with closing(batches):  # type: ignore[type-var]
        damaged = list(next(batches).damaged)  # starting the workers does not count
        start, num_seen = time.perf_counter(), 0
        for batch in batches:
            num_seen += len(batch.names)
            damaged += batch.damaged
            if time.perf_counter() - start > _LOADER_SECONDS:
                break
        return num_seen / (time.perf_counter() - start), list(dict.fromkeys(damaged))


def _try_each_phase(
    phases: list[PhaseForecast], device: torch.device, train_a_step: Callable[[int, str], None]
) -> tuple[int, dict[str, float] | None]:
    """The bytes free on the device, and where the phases fit into them, the seconds that a step of each takes."""
    available = available_memory(device)
    if max(phase.memory.total for phase in phases) >= available:
        return available, None
    seconds = {}
    for index, phase in enumerate(phases):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            train_a_step(index, folder)
            seconds[phase.name] = time.perf_counter() - start
    return available, seconds
