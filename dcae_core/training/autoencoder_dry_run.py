"""`--dry-run`: everything that can go wrong with a training, before it begins."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dcae_core.data.batches import BatchPlan
from dcae_core.distributed import world_size
from dcae_core.models.autoencoder import build_on_meta
from dcae_core.recipes.train_ae import PhaseSettings, TrainAutoencoderRecipe
from dcae_core.training.activation_checkpointing import checkpoint_activations
from dcae_core.training.autoencoder_recipe import configuration_of
from dcae_core.training.autoencoder_run import RunOptions, train_autoencoder
from dcae_core.training.memory import MemoryEstimate, available_memory, estimate_memory
from dcae_core.training.parts import blocks_of, count_trained, set_training_mode, train_only
from dcae_core.training.pictures import TrainingPictures
from dcae_core.training.resuming import find_checkpoint
from dcae_core.training.run_directory import RunDirectory

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
        num_pictures: found.
        loader_images_per_second: what the loader alone delivers.
        damaged: lines about damaged pictures among those that were looked at.
        continues_from: the checkpoint that the run would go on from, or None.
        seconds_per_step: of one step of each phase, the first included; None where it does not fit into memory.
    """

    phases: list[PhaseForecast]
    available: int
    num_pictures: int
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
    pictures = TrainingPictures(undecoded)
    rate, damaged = _measure_loader(pictures, recipe)
    available = available_memory(options.device)
    seconds = None
    if max(phase.memory.total for phase in phases) < available:
        seconds = dict(_try_each_phase(recipe.model_copy(update={"data": undecoded}), options))
    return Forecast(phases, available, len(pictures), rate, damaged, checkpoint, seconds)


def forecast_phase(recipe: TrainAutoencoderRecipe, phase: PhaseSettings) -> PhaseForecast:
    """Count a phase's parameters and estimate its memory, on the meta device."""
    network = build_on_meta(configuration_of(recipe.network))
    train_only(network, phase.parts, phase.adjacent_stages)
    set_training_mode(network)
    if recipe.execution.activation_checkpointing:
        checkpoint_activations(blocks_of(network))
    part = BatchPlan(phase.batch_size, phase.accumulation, world_size()).largest_piece
    x = torch.empty(part, 3, phase.resolution, phase.resolution, device="meta")
    memory = estimate_memory(network, x, ema=phase.ema is not None)
    return PhaseForecast(phase.name, phase.parts, *count_trained(network), memory)


def _measure_loader(pictures: TrainingPictures, recipe: TrainAutoencoderRecipe) -> tuple[float, list[str]]:
    """Images per second of the first phase's loader, and the damaged pictures that it met."""
    phase = recipe.phases[0]
    plan, steps = BatchPlan(phase.batch_size), range(phase.steps)
    with closing(pictures.batches(phase.resolution, (recipe.seed,), plan, steps)) as batches:
        damaged = list(next(batches).damaged)  # starting the workers does not count
        start, images = time.perf_counter(), 0
        for batch in batches:
            images += len(batch.names)
            damaged += batch.damaged
            if time.perf_counter() - start > _LOADER_SECONDS:
                break
        return images / (time.perf_counter() - start), list(dict.fromkeys(damaged))


def _try_each_phase(recipe: TrainAutoencoderRecipe, options: RunOptions) -> Iterator[tuple[str, float]]:
    for phase in recipe.phases:
        with tempfile.TemporaryDirectory() as folder:
            single = recipe.model_copy(
                update={
                    "run_dir": folder,
                    "network": recipe.network.model_copy(update={"init": "random"}),
                    "phases": [phase.model_copy(update={"steps": 1})],
                    "validation": None,
                    "latent_statistics_pictures": 1,
                }
            )
            start = time.perf_counter()
            train_autoencoder(single, RunOptions(options.device))
            yield phase.name, time.perf_counter() - start
