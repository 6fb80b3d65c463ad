"""`dcae train-diffusion --dry-run`: everything that can go wrong with a training, before it begins."""

import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.data.batches import BatchPlan
from dcae_core.distributed import world_size
from dcae_core.models.denoiser_config import DenoiserConfig
from dcae_core.models.denoisers import build_denoiser
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.diffusion_recipe import LatentKind, configuration_of, open_latents
from dcae_core.training.diffusion_run import DiffusionRunOptions, load_batches, train_diffusion
from dcae_core.training.memory import MemoryEstimate, available_memory, estimate_memory
from dcae_core.training.resuming import find_checkpoint
from dcae_core.training.run_directory import RunDirectory

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
    config = configuration_of(recipe, LatentKind.of(dataset))
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
