"""A whole training of a diffusion model on a latent dataset."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dcae_core.checkpoints.diffusion import DESCRIPTION_KEY, DiffusionParts, describe_denoiser
from dcae_core.checkpoints.locating import OWN_CONFIG_NAME
from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents import (
    GlobalShuffle,
    LatentDataset,
    Order,
    WindowShuffle,
    check_encoder,
    load_latents,
    verify_dataset,
)
from dcae_core.data.latents.store import LocalStore
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.distributed import broadcast_object, is_main, rank, world_size
from dcae_core.errors import DataError, UsageError
from dcae_core.files import write_text
from dcae_core.models.denoiser_config import DenoiserConfig
from dcae_core.models.denoisers import build_denoiser
from dcae_core.pipelines.encoder import encoder_name, load_encoder
from dcae_core.recipes.loading import write_recipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checkpointing import read_checkpoint, read_progress
from dcae_core.training.diffusion import DiffusionTask
from dcae_core.training.diffusion_batches import Chance, DiffusionBatch
from dcae_core.training.diffusion_recipe import LatentKind, configuration_of, open_latents
from dcae_core.training.diffusion_validation import SamplingValidation
from dcae_core.training.loop import Loop, LoopSettings, loss_scaler
from dcae_core.training.parallel import shard_by_block
from dcae_core.training.resuming import changes_since, find_checkpoint
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.signals import StopSignals
from dcae_core.training.task import Progress
from dcae_core.training.trackers import Watchers, open_trackers
from dcae_core.training.watching import Silent, Watcher

_PHASE = "diffusion"
_LATENTS_KEY = "latents"


@dataclass(frozen=True)
class DiffusionRunOptions:
    """What is about this call rather than about the training.

    Attributes:
        device: where to train.
        resume: "auto" continues what is in the run directory, "never" refuses to, a path continues that checkpoint.
    """

    device: torch.device
    resume: str = "auto"


def train_diffusion(recipe: TrainDiffusionRecipe, options: DiffusionRunOptions, watcher: Watcher | None = None) -> Path:
    """Train as a recipe says, or go on with it.

    Args:
        recipe: checked by `check_diffusion_recipe`.
        options: of this call.
        watcher: told how it goes.

    Returns:
        The run's directory, which `load_diffusion` opens.

    Raises:
        StoppedError: a signal ended it; the same call continues.
        DataError: latents are damaged or another autoencoder's; a loss is not finite.
        ResourceError: the disk is full.
        UsageError: another run uses the directory, or the run in it was another.
    """
    run = RunDirectory(Path(recipe.run_dir), recipe.checkpoints.keep, recipe.checkpoints.keep_every)
    with run.locked() if is_main() else nullcontext():
        return _DiffusionRun(recipe, options, run, watcher if watcher is not None and is_main() else Silent()).go()


def load_batches(
    recipe: TrainDiffusionRecipe, dataset: LatentDataset, config: DenoiserConfig, first_step: int
) -> Iterator[DiffusionBatch]:
    """One process's batches from a step on, noise and all.

    Raises:
        DataError: a shard is missing or damaged.
        DownloadError: a remote shard cannot be fetched.
    """
    chance = Chance(
        seed=recipe.seed,
        objective=OBJECTIVES[recipe.objective],
        label_dropout=recipe.label_dropout,
        num_classes=config.num_classes,
        channels=tuple(recipe.augmentation.channels) if recipe.augmentation is not None else None,
    )
    order, steps_ahead = _order_of(recipe, dataset)
    return load_latents(
        dataset,
        order,
        BatchPlan(recipe.batch_size, recipe.accumulation, world_size(), rank()),
        range(first_step, recipe.steps),
        chance.complete,
        steps_ahead=steps_ahead,
        num_threads=recipe.loading.num_threads,
    )


def _order_of(recipe: TrainDiffusionRecipe, dataset: LatentDataset) -> tuple[Order, int]:
    """The order of items, and how many steps ahead to fetch shards."""
    settings, counts = recipe.dataset, dataset.shard_counts
    if settings.shuffle == "global":
        return GlobalShuffle(len(dataset), recipe.seed), 0
    run = recipe.batch_size // settings.lanes
    order = WindowShuffle(counts, recipe.seed, window=settings.window, lanes=settings.lanes, run=run)
    items_of_windows = settings.window * settings.lanes * int(counts.max())
    return order, -(-items_of_windows // recipe.batch_size)


class _DiffusionRun:
    def __init__(
        self, recipe: TrainDiffusionRecipe, options: DiffusionRunOptions, run: RunDirectory, watcher: Watcher
    ) -> None:
        self.recipe, self.options, self.run, self.watcher = recipe, options, run, watcher
        self.dataset = open_latents(recipe)
        self.config = configuration_of(recipe, LatentKind.of(self.dataset))
        self.checkpoint = find_checkpoint(run, options.resume)
        self._compare_with_earlier()

    def go(self) -> Path:
        recipe, manifest = self.recipe, self.dataset.manifest
        self.watcher.note(
            f"{len(self.dataset):,} latents of {' x '.join(map(str, manifest.latent_shape))} by "
            f"{manifest.encoder.name}, {len(manifest.classes)} classes, scaling factor {manifest.scaling_factor:.4g}"
        )
        self._verify()
        validation = self._open_validation()
        if is_main():
            write_text(self.run.path / "recipe.yaml", write_recipe(recipe))
            write_text(self.run.path / OWN_CONFIG_NAME, self._description())
        network = self._build_network()
        progress = Progress() if self.checkpoint is None else read_progress(self.checkpoint)
        scaler = loss_scaler(self.options.device, recipe.execution.precision)
        task = DiffusionTask(network, recipe, manifest.scaling_factor, validation)
        if self.checkpoint is not None:
            read_checkpoint(self.checkpoint, task, scaler)
            self.watcher.note(f"continuing after step {progress.step}, from {self.checkpoint}")
        if is_main():
            self.run.forget_metrics_after(progress.step)
            trackers = open_trackers(recipe.logging, self.run.path, progress.step, recipe.model_dump(mode="json"))
            self.watcher = Watchers([self.watcher, *trackers])
        with StopSignals() as signals:
            loop = Loop(
                task,
                self._loop_settings(),
                self.run,
                progress,
                scaler,
                signals,
                self.watcher,
                recipe.loading.num_threads,
            )
            loop.train(load_batches(recipe, self.dataset, self.config, progress.step))
        return self.run.path

    def _build_network(self) -> nn.Module:
        torch.manual_seed(self.recipe.seed)
        network = build_denoiser(self.config).to(self.options.device)
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        self.watcher.note(
            f"{self.config.architecture}: training {trained:,} parameters to predict {self.recipe.objective}, "
            f"{self.recipe.steps} steps of {self.recipe.batch_size} latents"
        )
        if self.recipe.execution.sharding == "fsdp":
            shard_by_block(network)
        return network

    def _loop_settings(self) -> LoopSettings:
        recipe = self.recipe
        return LoopSettings(
            phase=_PHASE,
            steps=recipe.steps,
            total_steps=recipe.steps,
            batch_size=recipe.batch_size,
            accumulation=recipe.accumulation,
            checkpoint_every=recipe.checkpoints.every,
            validate_every=recipe.sampling.every if recipe.sampling is not None else None,
            log_every=recipe.logging.every,
        )

    def _verify(self) -> None:
        """Prove the latents' checksums in the main process; every process stops where they are wrong."""
        if not self.recipe.loading.verify or not isinstance(self.dataset.store, LocalStore):
            return
        faults = broadcast_object(verify_dataset(self.recipe.latents)[1] if is_main() else None)
        if faults:
            raise DataError(faults[0])

    def _open_validation(self) -> SamplingValidation | None:
        """What looks at the network, after the autoencoder has proved that the latents are its own."""
        recipe, manifest = self.recipe, self.dataset.manifest
        where = self.dataset.store.where
        if recipe.sampling is None:
            check_encoder(manifest, where, name=encoder_name(recipe.autoencoder), fingerprint=None)
            return None
        autoencoder, record = load_encoder(recipe.autoencoder, device=self.options.device, dtype=torch.float32)
        check_encoder(manifest, where, name=record.name, fingerprint=record.fingerprint)
        parts = DiffusionParts(nn.Identity(), autoencoder, recipe.objective, manifest.scaling_factor, self.config)
        return SamplingValidation(parts, recipe.sampling, recipe.steps, self.run.path / "samples")

    def _description(self) -> str:
        manifest = self.dataset.manifest
        diffusion = describe_denoiser(
            self.config.replace(activation_checkpointing=False),
            self.recipe.objective,
            self.recipe.autoencoder,
            manifest.scaling_factor,
            manifest.classes,
        )
        values = {DESCRIPTION_KEY: diffusion, _LATENTS_KEY: manifest.identity()}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def _compare_with_earlier(self) -> None:
        if self.checkpoint is None:
            return
        description = self.run.path / OWN_CONFIG_NAME
        if description.is_file():
            earlier = json.loads(description.read_text(encoding="utf-8")).get(_LATENTS_KEY)
            if earlier != self.dataset.manifest.identity():
                raise UsageError(
                    f"{self.run.path} holds a run on other latents than {self.recipe.latents}; "
                    "put them back, or choose another run_dir"
                )
        changed = changes_since(self.run, self.recipe.model_dump(mode="json"), 0)
        if changed:
            self.watcher.note(f"changed since this run was last started: {', '.join(changed)}")
