"""A whole training of an autoencoder: phase after phase, and the network that comes out of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.data.batches import Batch, BatchPlan, CropStream, PictureCollection, load_batches
from dcae_core.data.collections import DecodedOnDemand
from dcae_core.data.crops import CropSettings
from dcae_core.data.decoded_cache import open_decoded_cache
from dcae_core.data.pictures import uint8_to_tensor
from dcae_core.data.sources import find_pictures
from dcae_core.distributed import is_main, rank, world_size
from dcae_core.errors import UsageError
from dcae_core.files import write_text
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.autoencoder_config import AutoencoderConfig
from dcae_core.recipes.loading import write_recipe
from dcae_core.recipes.train_ae import PhaseSettings, TrainAutoencoderRecipe
from dcae_core.training.activation_checkpointing import checkpoint_activations
from dcae_core.training.autoencoder import AUTOENCODER, AutoencoderTask
from dcae_core.training.checkpointing import load_weights, read_checkpoint, read_progress
from dcae_core.training.initialisation import initialise_pca
from dcae_core.training.latent_statistics import LatentStatistics, measure_latents
from dcae_core.training.loop import Loop, LoopSettings, loss_scaler
from dcae_core.training.parallel import shard, synchronise_batch_norm, whole
from dcae_core.training.parts import count_trained
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.signals import StopSignals
from dcae_core.training.task import Progress
from dcae_core.training.validation import ReconstructionValidation
from dcae_core.training.watching import Silent, Watcher
from dcae_core.zoo import AUTOENCODERS, find_autoencoder, unknown_model

_PHASE_STREAM, _PCA_STREAM, _STATISTICS_STREAM = 0, 1, 2


@dataclass(frozen=True)
class RunOptions:
    """What is about this call rather than about the training.

    Attributes:
        device: where to train.
        resume: "auto" continues what is in the run directory, "never" refuses to, a path continues that checkpoint.
        phase: go through this phase only.
    """

    device: torch.device
    resume: str = "auto"
    phase: str | None = None


def configuration_of(recipe: TrainAutoencoderRecipe) -> AutoencoderConfig:
    """The network that a recipe describes.

    Raises:
        UsageError: no such model, unknown fields, or values that no network can be built from.
    """
    settings = recipe.network
    if settings.model == "custom":
        return AutoencoderConfig.from_dict(settings.config)
    entry = find_autoencoder(settings.model)
    if entry is None:
        raise unknown_model(settings.model, [*AUTOENCODERS, "custom"])
    return entry.config.replace(**settings.config)


def check_autoencoder_recipe(recipe: TrainAutoencoderRecipe) -> list[str]:
    """Faults that only show beside the network and the number of processes, as "dotted.path: message"."""
    try:
        config = configuration_of(recipe)
    except UsageError as error:
        return [f"network: {error}"]
    f = config.spatial_compression_ratio
    faults = []
    sizes = {f"phases.{index}.resolution": phase.resolution for index, phase in enumerate(recipe.phases)}
    if recipe.validation is not None:
        sizes["validation.resolution"] = recipe.validation.resolution
    for path, size in sizes.items():
        if size % f:
            faults.append(f"{path}: {size} is not a multiple of {f}, the network's compression; take {_round(size, f)}")
    for index, phase in enumerate(recipe.phases):
        share = phase.accumulation * world_size()
        if phase.batch_size % share:
            faults.append(
                f"phases.{index}.batch_size: {phase.batch_size} does not split over {world_size()} process(es) "
                f"times {phase.accumulation} part(s)"
            )
        if phase.latent_channels and max(phase.latent_channels) > config.latent_channels:
            faults.append(
                f"phases.{index}.latent_channels: {max(phase.latent_channels)} is more than the network's "
                f"{config.latent_channels}"
            )
    return faults


def _round(size: int, f: int) -> int:
    return max(f, round(size / f) * f)


def train_autoencoder(recipe: TrainAutoencoderRecipe, options: RunOptions, watcher: Watcher | None = None) -> Path:
    """Train as a recipe says, or go on with it; save the autoencoder of every phase.

    Args:
        recipe: checked by `check_autoencoder_recipe`.
        options: of this call.
        watcher: told how it goes.

    Returns:
        The directory of the trained autoencoder.

    Raises:
        StoppedError: a signal ended it; the same call continues.
        DataError: pictures are missing or damaged; a loss is not finite.
        ResourceError: the disk is full.
        UsageError: another run uses the directory.
    """
    run = RunDirectory(Path(recipe.run_dir), recipe.checkpoints.keep, recipe.checkpoints.keep_every)
    if not is_main():
        return _AutoencoderRun(recipe, options, run, Silent()).go()
    with run.locked():
        return _AutoencoderRun(recipe, options, run, watcher or Silent()).go()


class _AutoencoderRun:
    def __init__(
        self, recipe: TrainAutoencoderRecipe, options: RunOptions, run: RunDirectory, watcher: Watcher
    ) -> None:
        self.recipe, self.options, self.run, self.watcher = recipe, options, run, watcher
        self.checkpoint = self._find_checkpoint()
        self.collections = self._open_sources()
        self.validation = self._open_validation()

    def go(self) -> Path:
        recipe = self.recipe
        progress = read_progress(self.checkpoint) if self.checkpoint is not None else Progress()
        if is_main():
            write_text(self.run.path / "recipe.yaml", write_recipe(recipe))
            self.run.forget_metrics_after(progress.step)
        network = self._prepare(self._build_network())
        if self.checkpoint is not None:
            load_weights(network, self.checkpoint / f"{AUTOENCODER}.safetensors")
            self.watcher.note(f"continuing after step {progress.step}, from {self.checkpoint}")
        with StopSignals() as signals:
            for index in range(progress.phase, len(recipe.phases)):
                if index > progress.phase:
                    progress = Progress(phase=index, step=progress.step)
                self._train_phase(index, network, progress, signals)
        return self._save_result(network)

    def _train_phase(self, index: int, network: Autoencoder, progress: Progress, signals: StopSignals) -> None:
        recipe, phase = self.recipe, self.recipe.phases[index]
        seed = (recipe.seed, _PHASE_STREAM, index)
        scaler = loss_scaler(self.options.device, recipe.execution.precision)
        task = AutoencoderTask(network, phase, seed, recipe.execution, self.validation)
        if self.checkpoint is not None:
            read_checkpoint(self.checkpoint, task, scaler)
            self.checkpoint = None
        trained, total = count_trained(network)
        self.watcher.note(
            f"phase {phase.name}: training {', '.join(phase.parts)}: {trained:,} of {total:,} parameters, "
            f"{phase.steps} steps of {phase.batch_size} pictures of {phase.resolution}x{phase.resolution}"
        )
        settings = LoopSettings(
            phase=phase.name,
            steps=phase.steps,
            total_steps=sum(each.steps for each in recipe.phases),
            batch_size=phase.batch_size,
            accumulation=phase.accumulation,
            checkpoint_every=recipe.checkpoints.every,
            validate_every=recipe.validation.every if recipe.validation is not None else None,
            log_every=recipe.logging.every,
        )
        workers = recipe.data.num_workers
        loop = Loop(task, settings, self.run, progress, scaler, signals, self.watcher, workers)
        loop.train(self._batches(phase, seed, progress.phase_step))
        if task.ema is not None:
            task.ema.apply()
        self._export(network, self.run.path / "phases" / phase.name, None)

    def _batches(self, phase: PhaseSettings, seed: tuple[int, ...], first_step: int) -> Iterator[Batch]:
        plan = BatchPlan(phase.batch_size, phase.accumulation, world_size(), rank())
        steps = range(first_step, phase.steps)
        return load_batches(self._stream(phase.resolution, seed), plan, steps, self.recipe.data.num_workers)

    def _stream(self, resolution: int, seed: tuple[int, ...]) -> CropStream:
        data = self.recipe.data
        crops = CropSettings(
            resolution, (data.scale[0], data.scale[1]), (data.aspect_ratio[0], data.aspect_ratio[1]), data.flip
        )
        weights = [source.weight for source in data.sources]
        return CropStream(self.collections, weights, crops, seed, data.damaged == "skip")

    def _find_checkpoint(self) -> Path | None:
        resume = self.options.resume
        latest = self.run.latest()
        if resume == "auto":
            return latest
        if resume == "never":
            if latest is not None:
                raise UsageError(
                    f"{self.run.path} already holds a run, and --resume never does not continue it; "
                    "choose another run_dir"
                )
            return None
        return Path(resume)

    def _open_sources(self) -> list[PictureCollection]:
        data = self.recipe.data
        collections: list[PictureCollection] = []
        for source in data.sources:
            pictures = DecodedOnDemand(find_pictures([source.path]))
            if data.decoded_cache is None:
                collections.append(pictures)
                continue
            cache = open_decoded_cache(
                pictures, Path(data.decoded_cache), data.cache_shorter_side, skip_damaged=data.damaged == "skip"
            )
            if cache.damaged:
                self.run.append_damaged(cache.damaged)
                self.watcher.note(f"skipped {len(cache.damaged)} damaged picture(s): {cache.damaged[0]}")
            collections.append(cache)
        return collections

    def _open_validation(self) -> ReconstructionValidation | None:
        settings = self.recipe.validation
        if settings is None:
            return None
        return ReconstructionValidation(
            find_pictures([settings.path]),
            settings.resolution,
            settings.num_pictures,
            settings.batch_size,
            self.run.path / "samples",
            settings.num_grid_pictures,
        )

    def _build_network(self) -> Autoencoder:
        settings = self.recipe.network
        if settings.init == "weights":
            return load_autoencoder(settings.weights, prepare=False)
        torch.manual_seed(self.recipe.seed)
        network = Autoencoder(configuration_of(self.recipe))
        if settings.init == "pca" and self.checkpoint is None:
            initialise_pca(network, self._first_crops(settings.pca_pictures, _PCA_STREAM))
        return network

    def _prepare(self, network: Autoencoder) -> Autoencoder:
        """Put the network where and how it trains."""
        execution, device = self.recipe.execution, self.options.device
        network = network.to(device)
        if execution.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise_batch_norm(network, device)
        sides = (network.encoder, network.decoder)
        blocks = [block for side in sides for stage in side.stages for block in stage.children()]
        if execution.activation_checkpointing:
            checkpoint_activations(blocks)
        if execution.sharding == "fsdp":
            shard(sides, blocks)
        return network

    def _first_crops(self, count: int, stream_number: int) -> torch.Tensor:
        """(count, 3, R, R) in [-1, 1] at the first phase's resolution."""
        stream = self._stream(self.recipe.phases[0].resolution, (self.recipe.seed, stream_number))
        pixels = np.stack([stream[position].pixels for position in range(count)])
        return uint8_to_tensor(torch.from_numpy(pixels))

    def _save_result(self, network: Autoencoder) -> Path:
        statistics = self._measure_latents(network)
        self.watcher.note(
            f"latents: mean {statistics.mean:.4f}, rms {statistics.rms:.4f}, scaling factor 1/rms = "
            f"{statistics.scaling_factor:.4f}"
        )
        directory = self.run.path / "autoencoder"
        self._export(network, directory, statistics)
        return directory

    def _measure_latents(self, network: Autoencoder) -> LatentStatistics:
        stream = self._stream(self.recipe.phases[-1].resolution, (self.recipe.seed, _STATISTICS_STREAM))
        plan = BatchPlan(self.recipe.phases[-1].batch_size)
        steps = range(-(-self.recipe.latent_statistics_pictures // plan.batch_size))
        batches = load_batches(stream, plan, steps, self.recipe.data.num_workers)
        return measure_latents(network, (batch.pixels for batch in islice(batches, len(steps))))

    def _export(self, network: Autoencoder, directory: Path, statistics: LatentStatistics | None) -> None:
        metadata: dict[str, object] = {"recipe": self.recipe.model_dump(mode="json")}
        plain = build_on_meta(network.config)
        plain.load_state_dict({name: whole(value) for name, value in network.state_dict().items()}, assign=True)
        if statistics is not None:
            plain.scaling_factor = statistics.scaling_factor
            metadata["latent_statistics"] = statistics.to_dict()
        if is_main():
            save_autoencoder(plain, directory, metadata=metadata)
