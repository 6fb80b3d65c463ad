"""Training a diffusion model on a latent dataset: its batches, its steps, the whole run."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.checkpoints.denoiser_files import DESCRIPTION_KEY, describe_denoiser
from dcae_core.checkpoints.denoisers import DiffusionParts
from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME
from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents import (
    GlobalShuffle,
    LatentDataset,
    Manifest,
    Order,
    WindowShuffle,
    check_encoder,
    load_latents,
    verify_dataset,
)
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.data.latents.store import LocalStore
from dcae_core.diffusion.objectives import Objective, build_objective
from dcae_core.distributed import broadcast_object, is_main
from dcae_core.errors import DataError, UsageError
from dcae_core.files import write_text
from dcae_core.models import build_denoiser
from dcae_core.models.compilation import repays_compiling
from dcae_core.models.configs import DenoiserConfig
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.pipelines.encode import encoder_name, load_encoder
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import LatentKind, denoiser_config_of, normalisation_of, objective_of, open_latents
from dcae_core.training.loop import StopSignals
from dcae_core.training.optimisers import Ema, TrainedNetwork, averaged, build_trained_network
from dcae_core.training.parallel import checkpoint_activations, replicate, shard, without_synchronisation
from dcae_core.training.run import Run, RunOptions, RunPhase, open_run
from dcae_core.training.task import Loss, RunLogger
from dcae_core.training.trained_parts import count_trained, transformer_blocks
from dcae_core.training.validation import SamplingValidation

_SAMPLE_STREAM = 1  # tells the random numbers of samples from those of their order


@dataclass(frozen=True)
class DiffusionBatch:
    """What one process computes on at once, on the CPU.

    Attributes:
        latents: (b, C, h, w), unscaled, in their stored dtype.
        labels: (b,) int64; the null class where the class is dropped.
        noise: (b, C, h, w) float32, standard normal.
        times: (b,) network times.
        channels: (b,) leading channels of the second loss, or None.
        damaged: nothing; batches of images have such lines.
        worker_seconds: time that the reading threads spent on it.
    """

    latents: Tensor
    labels: Tensor
    noise: Tensor
    times: Tensor
    channels: Tensor | None
    names: tuple[str, ...]
    worker_seconds: float
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingNoise:
    """Draws for samples. About 0.1 ms a sample of 32x16x16, in the threads that read.

    Class `num_classes` is the null class, 0: there are none; `channels` are numbers of leading channels to choose from.
    """

    seed: int
    objective: Objective
    label_dropout: float
    num_classes: int
    channels: tuple[int, ...] | None = None

    def complete(self, batch: LatentBatch) -> DiffusionBatch:
        """Add to a batch of latents what is drawn at random."""
        generator = torch.Generator()
        noise = torch.empty(batch.latents.shape)
        times, dropped, chosen = [], [], []
        for row, position in enumerate(batch.positions.tolist()):
            entropy = np.random.SeedSequence([self.seed, _SAMPLE_STREAM, position])
            generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            times.append(self.objective.draw_times(1, generator))
            uniform = torch.rand(2, generator=generator).tolist()
            dropped.append(uniform[0] < self.label_dropout)
            chosen.append(self.channels[int(uniform[1] * len(self.channels))] if self.channels else 0)
            torch.randn(noise[row].shape, generator=generator, out=noise[row])
        labels = torch.where(torch.tensor(dropped), self.num_classes, batch.labels)
        return DiffusionBatch(
            latents=batch.latents,
            labels=labels if self.num_classes else torch.zeros_like(labels),
            noise=noise,
            times=torch.cat(times),
            channels=torch.tensor(chosen) if self.channels else None,
            names=tuple(f"latent {item}" for item in batch.items.tolist()),
            worker_seconds=batch.seconds,
        )


MODEL = "model"
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Validation(Protocol):
    """Measures the network on the way."""

    def measure(self, network: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures of the network as it is, or None where `stop` turned true on the way."""


class DiffusionTask:
    """Trains a network, on its device and called as `network(x, t, y)`, to undo noise.

    It sees latents times `scaling_factor`, or with a `normalisation` each channel's mean taken off and its deviation
    divided out.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: TrainDiffusionRecipe,
        scaling_factor: float,
        validation: Validation | None,
        normalisation: ChannelNormalisation | None = None,
    ) -> None:
        execution = recipe.execution
        self.network = network
        self._losses_of = build_objective(recipe.objective, min_snr_gamma=recipe.min_snr_gamma).losses
        self._normalisation = normalisation
        self._augmentation_weight = recipe.augmentation.weight if recipe.augmentation is not None else 0.0
        self._scaling_factor = scaling_factor
        self._validation = validation
        self._device = next(network.parameters()).device
        self._dtype = _AUTOCAST[execution.precision]
        network.train()
        self.ema = Ema(network, recipe.ema.decay, recipe.ema.warmup_steps) if recipe.ema is not None else None
        self.networks: dict[str, TrainedNetwork] = {
            MODEL: build_trained_network(network, recipe.optimiser, recipe.steps)
        }
        self._forward = replicate(network) if execution.sharding == "ddp" else network
        if repays_compiling(self._device, recipe.steps, execution.compile):
            self._forward.compile()

    def losses(self, batch: DiffusionBatch, step: int) -> Iterator[Loss]:
        """The loss of a part of a batch."""
        data = batch.latents.to(self._device, non_blocking=True).float()
        data = data * self._scaling_factor if self._normalisation is None else self._normalisation.apply(data)
        noise = batch.noise.to(self._device, non_blocking=True)
        times, labels = batch.times.to(self._device), batch.labels.to(self._device)
        if batch.channels is None:
            terms = self._losses(data, noise, times, labels, None)
            value = terms["loss"].mean()
        else:
            terms, value = self._augmented_losses(data, noise, times, labels, batch.channels.to(self._device))
        yield Loss(
            MODEL, value, {name: term.detach().mean() for name, term in terms.items()} | {"loss": value.detach()}
        )

    def _augmented_losses(
        self, data: Tensor, noise: Tensor, times: Tensor, labels: Tensor, channels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The usual loss, and the same with all but the leading channels set to zero, per channel that is left.

        Both halves are one batch of the network: twice the cost of a step without.

        Source: augmented diffusion training, DC-AE 1.5 (arXiv 2508.00413), section 3.3; details ours.
        """
        kept = torch.arange(data.shape[1], device=data.device) < channels[:, None]
        mask = torch.cat([torch.ones_like(kept), kept])[:, :, None, None].to(data.dtype)
        both = [torch.cat([part, part]) for part in (data, noise, times, labels)]
        losses = self._losses(both[0] * mask, both[1] * mask, both[2], both[3], mask)["loss"]
        whole, leading = losses.chunk(2)
        leading = leading * (data.shape[1] / channels)
        terms = {"denoising": whole, "leading_channels": leading}
        return terms, whole.mean() + self._augmentation_weight * leading.mean()

    def _losses(
        self, data: Tensor, noise: Tensor, times: Tensor, labels: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        def model(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
                prediction = self._forward(x, t, labels).float()
            return prediction if mask is None else prediction * mask

        return self._losses_of(model, data, noise, times)

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Within it, gradients are summed up in each process alone."""
        return without_synchronisation([self._forward])

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Images and figures of the averaged weights."""
        if self._validation is None:
            return {}
        with averaged(self.network, self.ema):
            return self._validation.measure(self.network, step, stop)


PHASE = "diffusion"
_LATENTS_KEY = "latents"


def train_diffusion(recipe: TrainDiffusionRecipe, options: RunOptions, logger: RunLogger | None = None) -> Path:
    """Train as a recipe says, or continue; return the run's directory, which `load_diffusion` opens.

    Raises:
        StoppedError: a signal ended it; the same call continues.
        DataError: latents are damaged or another autoencoder's; a loss is not finite.
        ResourceError: the disk is full.
        UsageError: another run uses the directory, or the run in it was another.
    """
    phases = [RunPhase(PHASE, recipe.steps, recipe.batch_size, recipe.accumulation)]
    with open_run(recipe, phases, options, logger) as run:
        dataset = open_latents(recipe)
        manifest, config = dataset.manifest, denoiser_config_of(recipe, LatentKind.of(dataset))
        normalisation = normalisation_of(recipe, dataset)
        _refuse_other_latents(recipe, run, dataset)
        run.logger.note(
            f"{len(dataset):,} latents of {' x '.join(map(str, manifest.latent_shape))} by "
            f"{manifest.encoder.name}, {len(manifest.classes)} classes, "
            + (f"scaling factor {manifest.scaling_factor:.4g}" if normalisation is None else "normalised by channel")
        )
        _verify(recipe, dataset)
        validation = _open_validation(recipe, run, dataset, config)
        run.begin()
        if is_main():
            write_text(run.directory.path / OWN_CONFIG_NAME, _describe(recipe, dataset, config, run.directory.path))
        network = _build_network(recipe, config, run)
        run.note_start()
        task = DiffusionTask(network, recipe, manifest.scaling_factor, validation, normalisation)
        every = recipe.sampling.every if recipe.sampling is not None else None
        with StopSignals() as signals:
            loop = run.open_loop(task, signals, validate_every=every, num_workers=recipe.loading.num_threads)
            loop.train(load_batches(recipe, dataset, config, run.batch_plan, run.steps_left))
        return run.directory.path


def load_batches(
    recipe: TrainDiffusionRecipe, dataset: LatentDataset, config: DenoiserConfig, plan: BatchPlan, steps: range
) -> Iterator[DiffusionBatch]:
    """One process's batches of the given steps, noise and all."""
    noise = TrainingNoise(
        seed=recipe.seed,
        objective=objective_of(recipe, config),
        label_dropout=recipe.label_dropout,
        num_classes=config.num_classes,
        channels=tuple(recipe.augmentation.channels) if recipe.augmentation is not None else None,
    )
    order, steps_ahead = _order_of(recipe, dataset)
    return load_latents(
        dataset,
        order,
        plan,
        steps,
        noise.complete,
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


def _refuse_other_latents(recipe: TrainDiffusionRecipe, run: Run, dataset: LatentDataset) -> None:
    description = run.directory.path / OWN_CONFIG_NAME
    if run.checkpoint is None or not description.is_file():
        return
    if json.loads(description.read_text(encoding="utf-8")).get(_LATENTS_KEY) != dataset.manifest.identity():
        raise UsageError(
            f"{run.directory.path} holds a run on other latents than {recipe.latents}; "
            "put them back, or choose another run_dir"
        )


def _verify(recipe: TrainDiffusionRecipe, dataset: LatentDataset) -> None:
    """Prove the latents' checksums in the main process; every process stops where they are wrong."""
    if not isinstance(dataset.store, LocalStore):
        return
    if not recipe.loading.verify:
        dataset.check_shards()
        return
    faults = broadcast_object(verify_dataset(recipe.latents)[1] if is_main() else None)
    if faults:
        raise DataError(faults[0])


def _open_validation(
    recipe: TrainDiffusionRecipe, run: Run, dataset: LatentDataset, config: DenoiserConfig
) -> SamplingValidation | None:
    """What samples from the network on the way; the autoencoder has to prove first that the latents are its own."""
    manifest, where = dataset.manifest, dataset.store.where
    if recipe.sampling is None:
        _check_unloaded(manifest, where, recipe.autoencoder)
        return None
    autoencoder, record = load_encoder(recipe.autoencoder, device=run.device, dtype=torch.float32)
    check_encoder(manifest, where, record)
    parts = DiffusionParts(
        nn.Identity(),
        autoencoder,
        recipe.objective,
        manifest.scaling_factor,
        config,
        normalisation=normalisation_of(recipe, dataset),
    )
    return SamplingValidation(parts, recipe.sampling, recipe.steps, run.directory.grid, recipe.execution.compile)


def _check_unloaded(manifest: Manifest, where: str, model: str | None) -> None:
    """As `_open_validation` does, without a download: of an autoencoder that is not on this disk the name has to do."""
    record = EncoderRecord(name=encoder_name(model), scaling_factor=None)
    if manifest.encoder.fingerprint is not None and (model is None or Path(model).exists()):
        _, record = load_encoder(model, device=torch.device("cpu"), dtype=torch.float32, prepare=False)
    check_encoder(manifest, where, record)


def _describe(recipe: TrainDiffusionRecipe, dataset: LatentDataset, config: DenoiserConfig, where: Path) -> str:
    manifest = dataset.manifest
    diffusion = describe_denoiser(
        config,
        recipe.objective,
        recipe.autoencoder,
        manifest.scaling_factor,
        manifest.classes,
        where=where,
        made_by=(manifest.encoder.fingerprint, manifest.encoder.encoder_fingerprint),
        normalisation=normalisation_of(recipe, dataset),
    )
    values = {DESCRIPTION_KEY: diffusion, _LATENTS_KEY: manifest.identity()}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _build_network(recipe: TrainDiffusionRecipe, config: DenoiserConfig, run: Run) -> nn.Module:
    torch.manual_seed(recipe.seed)
    network = build_denoiser(config).to(run.device)
    run.logger.note(
        f"{config.architecture}: training {count_trained(network)[0]:,} parameters to predict {recipe.objective}, "
        f"{recipe.steps} steps of {recipe.batch_size} latents"
    )
    if recipe.execution.activation_checkpointing:
        checkpoint_activations(transformer_blocks(network))
    if recipe.execution.sharding == "fsdp":
        shard([network], transformer_blocks(network))
    return network
