"""A whole training of an autoencoder: phase after phase, and the network that comes out of it."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.data.batches import BatchPlan
from dcae_core.data.sources import find_pictures
from dcae_core.distributed import is_main, rank, world_size
from dcae_core.files import write_text
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.recipes.loading import write_recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.activation_checkpointing import checkpoint_activations
from dcae_core.training.autoencoder import AUTOENCODER, AutoencoderTask
from dcae_core.training.autoencoder_recipe import configuration_of
from dcae_core.training.checkpointing import load_weights, read_checkpoint
from dcae_core.training.initialisation import initialise_pca
from dcae_core.training.latent_statistics import LatentStatistics, measure_latents
from dcae_core.training.loop import Loop, LoopSettings, loss_scaler
from dcae_core.training.parallel import shard, synchronise_batch_norm, whole
from dcae_core.training.parts import blocks_of, count_trained
from dcae_core.training.pictures import TrainingPictures
from dcae_core.training.resuming import changes_since, find_checkpoint, where_to_begin
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.signals import StopSignals
from dcae_core.training.task import Progress
from dcae_core.training.trackers import Watchers, open_trackers
from dcae_core.training.validation import ReconstructionValidation
from dcae_core.training.watching import Silent, Watcher

_PHASE_STREAM, _PCA_STREAM, _STATISTICS_STREAM = 0, 1, 2  # tell the chances of a run from each other


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
        names, steps = [phase.name for phase in recipe.phases], [phase.steps for phase in recipe.phases]
        self.checkpoint = find_checkpoint(run, options.resume)
        self.progress, self.last_phase = where_to_begin(self.checkpoint, list(names), steps, options.phase)
        self._compare_recipe()
        self._open_trackers()
        self.pictures = TrainingPictures(recipe.data)
        self.validation = self._open_validation()

    def go(self) -> Path:
        if is_main():
            write_text(self.run.path / "recipe.yaml", write_recipe(self.recipe))
            step = self.progress.step if self.checkpoint is not None else -1
            self.run.forget_metrics_after(step, validation_due=self.progress.validation_due)
            self.run.forget_checkpoints_after(step)
            self.run.append_damaged(self.pictures.damaged)
        self.watcher.note(f"{len(self.pictures):,} pictures, {len(self.pictures.damaged)} damaged")
        network = self._prepare(self._build_network())
        if self.checkpoint is not None:
            load_weights(network, self.checkpoint / f"{AUTOENCODER}.safetensors")
            self.watcher.note(f"continuing after step {self.progress.step}, from {self.checkpoint}")
        with StopSignals() as signals:
            for index in range(self.progress.phase, self.last_phase + 1):
                if index > self.progress.phase:
                    self.progress = Progress(phase=index, step=self.progress.step)
                self._train_phase(index, network, signals)
        return self._save_result(network)

    def _open_trackers(self) -> None:
        if is_main():
            values = self.recipe.model_dump(mode="json")
            trackers = open_trackers(self.recipe.logging, self.run.path, self.progress.step, values)
            self.watcher = Watchers([self.watcher, *trackers])

    def _compare_recipe(self) -> None:
        if self.checkpoint is not None:
            changed = changes_since(self.run, self.recipe.model_dump(mode="json"), self.progress.phase)
            if changed:
                self.watcher.note(f"changed since this run was last started: {', '.join(changed)}")

    def _train_phase(self, index: int, network: Autoencoder, signals: StopSignals) -> None:
        recipe, phase, progress = self.recipe, self.recipe.phases[index], self.progress
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
        plan = BatchPlan(phase.batch_size, phase.accumulation, world_size(), rank())
        steps = range(progress.phase_step, phase.steps)
        loop = Loop(task, settings, self.run, progress, scaler, signals, self.watcher, recipe.data.num_workers)
        with closing(self.pictures.batches(phase.resolution, seed, plan, steps)) as batches:
            loop.train(batches)
        if task.ema is not None:
            task.ema.apply()
        self._export(network, self.run.path / "phases" / phase.name, None)

    def _open_validation(self) -> ReconstructionValidation | None:
        settings = self.recipe.validation
        if settings is None:
            return None
        pictures = find_pictures([settings.path])
        return ReconstructionValidation(pictures, settings, self.run.path / "samples", self.options.device)

    def _build_network(self) -> Autoencoder:
        recipe, settings = self.recipe, self.recipe.network
        if settings.weights is not None:
            return load_autoencoder(settings.weights, prepare=False)
        torch.manual_seed(recipe.seed)
        network = Autoencoder(configuration_of(settings))
        if settings.init == "pca" and self.checkpoint is None:
            resolution = recipe.phases[0].resolution
            crops = self.pictures.first_crops(settings.pca_pictures, resolution, (recipe.seed, _PCA_STREAM))
            initialise_pca(network, crops)
        return network

    def _prepare(self, network: Autoencoder) -> Autoencoder:
        """Put the network where and how it trains."""
        execution, device = self.recipe.execution, self.options.device
        network = network.to(device)
        if execution.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise_batch_norm(network, device)
        if execution.activation_checkpointing:
            checkpoint_activations(blocks_of(network))
        if execution.sharding == "fsdp":
            shard((network.encoder, network.decoder), blocks_of(network))
        return network

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
        phase = self.recipe.phases[-1]
        steps = range(-(-self.recipe.latent_statistics_pictures // phase.batch_size))
        seed = (self.recipe.seed, _STATISTICS_STREAM)
        with closing(self.pictures.batches(phase.resolution, seed, BatchPlan(phase.batch_size), steps)) as batches:
            return measure_latents(network, (batch.pixels for batch in batches))

    def _export(self, network: Autoencoder, directory: Path, statistics: LatentStatistics | None) -> None:
        metadata: dict[str, object] = {"recipe": self.recipe.model_dump(mode="json")}
        plain = build_on_meta(network.config)
        plain.load_state_dict({name: whole(value) for name, value in network.state_dict().items()}, assign=True)
        if statistics is not None:
            plain.scaling_factor = statistics.scaling_factor
            metadata["latent_statistics"] = statistics.to_dict()
        if is_main():
            save_autoencoder(plain, directory, metadata=metadata)
