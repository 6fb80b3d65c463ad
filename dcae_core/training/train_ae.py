"""Training an autoencoder: its images, one phase as the loop sees it, and the whole run."""

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.checkpoints.autoencoders import open_directory
from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME
from dcae_core.checkpoints.training_runs import RESULT_NAME, describe_training
from dcae_core.data.batches import Batch, BatchPlan, CropSettings, CropStream, ImageCollection, load_batches
from dcae_core.data.content import digest_of_images
from dcae_core.data.decoded_cache import DecodedCache, open_decoded_cache
from dcae_core.data.images import uint8_to_tensor
from dcae_core.data.latents.statistics import LatentMoments, LatentStatistics
from dcae_core.data.sources import DecodedOnDemand, find_images
from dcae_core.distributed import barrier, broadcast_object, is_local_main, is_main, on_main
from dcae_core.errors import CheckpointError
from dcae_core.files import sha256_of_file, write_text
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.compilation import repays_compiling
from dcae_core.recipes.settings import ExecutionSettings
from dcae_core.recipes.train_ae import DataSettings, PhaseSettings, TrainAutoencoderRecipe
from dcae_core.training.adversarial import DISCRIMINATOR, AdversarialTerm
from dcae_core.training.alignment import ALIGNMENT, AlignmentTerm
from dcae_core.training.checkpointing import load_weights
from dcae_core.training.checks import autoencoder_config_of
from dcae_core.training.equivariance import Change, choose_change
from dcae_core.training.loop import StopSignals
from dcae_core.training.losses import ReconstructionLoss
from dcae_core.training.optimisers import Ema, TrainedNetwork, averaged, build_trained_network
from dcae_core.training.parallel import (
    checkpoint_activations,
    replicate,
    shard,
    synchronise_batch_norm,
    whole,
    without_synchronisation,
)
from dcae_core.training.pca import initialise_pca
from dcae_core.training.run import Run, RunOptions, RunPhase, open_run
from dcae_core.training.task import Loss, RunLogger
from dcae_core.training.trained_parts import blocks_of, count_trained, set_training_mode, train_only
from dcae_core.training.validation import ReconstructionValidation
from dcae_core.weights import read_json

_SECONDS_BETWEEN_NOTES = 30.0


class TrainingImages:
    """Random crops of the sources that a recipe names.

    Finding costs one scan of the folders; a decoded cache is filled on the first use: `note` is told every half a
    minute how far that is, and `damaged` has lines about images that could not be put into it, and about damaged
    shards. `identity` are the images' number and digests, as the main process finds them.
    """

    def __init__(self, settings: DataSettings, note: Callable[[str], None] = lambda text: None) -> None:
        self._settings, self._note = settings, note
        self._told = time.monotonic()
        self.damaged: list[str] = []
        self._digests: list[str] = []
        self._collections: list[ImageCollection] = [self._open(source.path) for source in settings.sources]
        # Copies of the images on several machines are the main process's to compare.
        self.identity = broadcast_object({"images": len(self), "sha256": self._digests})

    def __len__(self) -> int:
        return sum(len(collection) for collection in self._collections)

    def batches(self, resolution: int, seed: tuple[int, ...], plan: BatchPlan, steps: range) -> Generator[Batch]:
        """The parts of the given steps that this process computes, decoded by workers."""
        return load_batches(self._stream(resolution, seed), plan, steps, self._settings.num_workers)

    def first_crops(self, count: int, resolution: int, seed: tuple[int, ...]) -> torch.Tensor:
        """(count, 3, resolution, resolution) in [-1, 1], decoded here and now."""
        stream = self._stream(resolution, seed)
        pixels = np.stack([stream[position].pixels for position in range(count)])
        return uint8_to_tensor(torch.from_numpy(pixels))

    def _stream(self, resolution: int, seed: tuple[int, ...]) -> CropStream:
        settings = self._settings
        (smallest, largest), (narrowest, widest) = settings.scale, settings.aspect_ratio
        crops = CropSettings(resolution, (smallest, largest), (narrowest, widest), settings.flip)
        weights = [source.weight for source in settings.sources]
        return CropStream(self._collections, weights, crops, seed, settings.damaged == "skip")

    def _open(self, path: str) -> ImageCollection:
        found = find_images([path], skip_damaged=self._settings.damaged == "skip")
        self.damaged += [str(left_out.error) for left_out in found.left_out]
        if is_main():
            self._digests.append(digest_of_images(found))
        for line in found.notes():
            self._note(line)
        images = DecodedOnDemand(found)
        if self._settings.decoded_cache is None:
            return images
        if is_local_main():
            cache = self._open_cache(images)
        barrier()
        if not is_local_main():
            cache = self._open_cache(images)
        self.damaged += cache.damaged
        return cache

    def _open_cache(self, images: DecodedOnDemand) -> DecodedCache:
        settings = self._settings
        assert settings.decoded_cache is not None
        return open_decoded_cache(
            images,
            Path(settings.decoded_cache),
            settings.cache_shorter_side,
            skip_damaged=settings.damaged == "skip",
            progress=self._tell,
        )

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_NOTES:
            self._told = now
            self._note(f"decoding images once, into {self._settings.decoded_cache}: {done} of {total}")


AUTOENCODER = "autoencoder"
_CHANNELS_STREAM, _CHANGE_STREAM = 2, 3  # tell the random numbers of latents from those of crops
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Reconstruct(nn.Module):
    """Encoder and decoder as one forward pass, which is what data-parallel wrappers need, with what is done between."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, latent_channels: int | None, change: Change | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> latents of so many leading channels (all if None), and what they decode to.

        With a `change` in the latent, what the changed latents decode to.
        """
        latents = self.network.encode(x, latent_channels)
        changed = change.of_latents(latents) if change is not None and change.in_latent else latents
        return latents, self.network.decode(changed)


class AutoencoderTask:
    """Trains the parts of an autoencoder that a phase names: from here on they alone take gradients."""

    def __init__(
        self,
        network: Autoencoder,
        phase: PhaseSettings,
        seed: tuple[int, ...],
        execution: ExecutionSettings,
        validation: ReconstructionValidation | None,
    ) -> None:
        self.network, self.phase = network, phase
        self._seed = seed
        self._validation = validation
        self._device = next(network.parameters()).device
        self._dtype = _AUTOCAST[execution.precision]
        self._channels_last = execution.channels_last
        train_only(network, phase.parts, phase.adjacent_stages)
        set_training_mode(network)
        self.ema = Ema(network, phase.ema.decay, phase.ema.warmup_steps) if phase.ema is not None else None
        self.networks: dict[str, TrainedNetwork] = {
            AUTOENCODER: build_trained_network(network, phase.optimiser, phase.steps)
        }
        self._reconstruct: nn.Module = Reconstruct(network)
        if execution.sharding == "ddp":
            self._reconstruct = replicate(self._reconstruct)
        if repays_compiling(self._device, phase.steps, execution.compile):
            self._reconstruct.compile()
        self._forward_modules = [self._reconstruct]
        self._criterion = ReconstructionLoss(phase.losses, self._device)
        self._adversarial = None
        if phase.losses.adversarial is not None:
            self._adversarial = AdversarialTerm(phase.losses.adversarial, phase.steps, seed, self._device)
            self.networks[DISCRIMINATOR] = self._adversarial.trained
            self._forward_modules.append(self._adversarial.module)
        self._alignment = None
        if phase.losses.alignment is not None:
            self._alignment = AlignmentTerm(
                phase.losses.alignment, network.latent_channels, phase.optimiser, phase.steps, seed, self._device
            )
            self.networks[ALIGNMENT] = self._alignment.trained
            self._forward_modules.append(self._alignment.module)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """The autoencoder's loss on a part of a batch, then the discriminator's if there is one."""
        images = uint8_to_tensor(batch.pixels.to(self._device, non_blocking=True))
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        change = self._choose_change(step)
        targets = images if change is None else change.of_images(images, self.network.spatial_compression_ratio)
        if change is not None and not change.in_latent:
            images = targets
        with self._autocast():
            latents, reconstructions = self._reconstruct(images, self._choose_latent_channels(step), change)
        reconstruction_loss, terms = self._criterion(reconstructions, targets)
        value = reconstruction_loss
        if self._adversarial is not None and step >= self._adversarial.settings.start_step:
            with self._autocast():
                fooling = self._adversarial.fooling_loss(reconstructions)
            weight = self._adversarial.weight(reconstruction_loss, fooling, _last_layer(self.network))
            value = value + weight * fooling
            terms |= {"generator": fooling.detach(), "adversarial_weight": weight}
        if self._alignment is not None:
            with self._autocast():
                distance, parts = self._alignment.loss(latents, images)
            weight = self._alignment.weight(reconstruction_loss, distance, _last_layer(self.network.encoder))
            value = value + weight * distance
            terms |= parts | {"alignment_weight": weight}
        yield Loss(AUTOENCODER, value, {"loss": value.detach()} | terms)
        if self._adversarial is not None:
            with self._autocast():
                value, terms = self._adversarial.discriminating_loss(targets, reconstructions.detach())
            yield Loss(DISCRIMINATOR, value, terms)

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Within it, gradients are summed up in each process alone."""
        return without_synchronisation(self._forward_modules)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures of the averaged weights on the held-out images."""
        if self._validation is None:
            return {}
        with averaged(self.network, self.ema):
            return self._validation.measure(self.network, step, stop)

    def _choose_change(self, step: int) -> Change | None:
        """The same in every process and every part of the step."""
        if self.phase.equivariance is None:
            return None
        side = self.phase.resolution // self.network.spatial_compression_ratio
        return choose_change(self.phase.equivariance, side, np.random.default_rng([*self._seed, _CHANGE_STREAM, step]))

    def _choose_latent_channels(self, step: int) -> int | None:
        """The same in every process and every part of the step.

        Source: structured latent space, DC-AE 1.5 (arXiv 2508.00413), section 3.2.
        """
        if self.phase.latent_channels is None:
            return None
        generator = np.random.default_rng([*self._seed, _CHANNELS_STREAM, step])
        return int(generator.choice(self.phase.latent_channels))


def _last_layer(network: nn.Module) -> Tensor:
    """The trained weights nearest to what comes out: the decoder's head or the encoder's, where that is trained."""
    return [weight for weight in network.parameters() if weight.requires_grad and weight.ndim > 1][-1]


@torch.no_grad()
def measure_latents(network: Autoencoder, batches: Iterable[Tensor]) -> LatentStatistics:
    """Encode uint8 images (B, 3, H, W), and add up their latents: one batch of memory, one encoding each.

    The network is put into evaluation mode.
    """
    network.eval()
    device = next(network.parameters()).device
    moments = LatentMoments()
    for pixels in batches:
        moments.update(network.encode(uint8_to_tensor(pixels.to(device))))
    statistics = moments.result()
    assert statistics is not None
    return statistics


_STEP_KEY = "step"  # of a result: after how many steps of its recipe it was saved
_PHASE_STREAM, _PCA_STREAM, _STATISTICS_STREAM = 0, 1, 2  # tell the random numbers of a run from each other


def train_autoencoder(recipe: TrainAutoencoderRecipe, options: RunOptions, logger: RunLogger | None = None) -> Path:
    """Train as a recipe says, or continue; save the autoencoder of every phase; return the trained one's directory.

    Raises:
        StoppedError: a signal ended it; the same call continues.
        DataError: images are missing or damaged; a loss is not finite.
        ResourceError: the disk is full.
        UsageError: another run uses the directory.
    """
    phases = [RunPhase(phase.name, phase.steps, phase.batch_size, phase.accumulation) for phase in recipe.phases]
    with open_run(recipe, phases, options, logger, validate_first=recipe.validation is not None) as run:
        images = TrainingImages(recipe.data, run.logger.note)
        run.check_data(images.identity)
        validation = _open_validation(recipe, run)
        run.begin()
        if is_main():
            run.directory.append_damaged(images.damaged)
        run.logger.note(f"{len(images):,} images, {len(images.damaged)} damaged")
        result = run.directory.path / RESULT_NAME
        if on_main(lambda: run.is_finished and _is_saved(result, recipe, run.progress.step)):
            run.logger.note(f"all {run.progress.step} steps are done, and their result is saved: nothing is left to do")
            return result
        network = _prepare(_build_network(recipe, images, run), recipe.execution, run.device)
        if is_main():
            description = describe_training(network.config, _kept_scaling_factor(recipe, network, len(recipe.phases)))
            write_text(run.directory.path / OWN_CONFIG_NAME, json.dumps(description, indent=1) + "\n")
        if run.checkpoint is not None:
            load_weights(network, run.checkpoint / f"{AUTOENCODER}.safetensors")
        run.note_start()
        with StopSignals() as signals:
            for index in run.phases_left():
                _train_phase(recipe, index, run, network, images, validation, signals)
        _save_result(recipe, run, network, images, result)
        return result


def _train_phase(
    recipe: TrainAutoencoderRecipe,
    index: int,
    run: Run,
    network: Autoencoder,
    images: TrainingImages,
    validation: ReconstructionValidation | None,
    signals: StopSignals,
) -> None:
    phase, seed = recipe.phases[index], (recipe.seed, _PHASE_STREAM, index)
    task = AutoencoderTask(network, phase, seed, recipe.execution, validation)
    validate_every = recipe.validation.every if recipe.validation is not None else None
    loop = run.open_loop(task, signals, validate_every=validate_every, num_workers=recipe.data.num_workers)
    trained, total = count_trained(network)
    run.logger.note(
        f"phase {phase.name}: training {', '.join(phase.parts)}: {trained:,} of {total:,} parameters, "
        f"{phase.steps} steps of {phase.batch_size} images of {phase.resolution}x{phase.resolution}"
    )
    with closing(images.batches(phase.resolution, seed, run.batch_plan, run.steps_left)) as batches:
        loop.train(batches)
    if task.ema is not None:
        task.ema.apply()
    kept = _kept_scaling_factor(recipe, network, index + 1)
    _export(recipe, network, run.directory.path / "phases" / phase.name, kept)


def _open_validation(recipe: TrainAutoencoderRecipe, run: Run) -> ReconstructionValidation | None:
    if recipe.validation is None:
        return None
    images = find_images([recipe.validation.path], skip_damaged=recipe.data.damaged == "skip")
    for left_out in images.left_out:
        run.logger.note(f"left out of the validation: {left_out.error}")
    return ReconstructionValidation(images, recipe.validation, run.directory.grid, run.device)


def _build_network(recipe: TrainAutoencoderRecipe, images: TrainingImages, run: Run) -> Autoencoder:
    settings = recipe.network
    if settings.weights is not None:
        return load_autoencoder(settings.weights, prepare=False)
    torch.manual_seed(recipe.seed)
    network = Autoencoder(autoencoder_config_of(settings))
    if settings.init == "pca" and run.checkpoint is None:
        resolution = recipe.phases[0].resolution
        initialise_pca(network, images.first_crops(settings.pca_images, resolution, (recipe.seed, _PCA_STREAM)))
    return network


def _prepare(network: Autoencoder, execution: ExecutionSettings, device: torch.device) -> Autoencoder:
    """Put the network where and how it trains."""
    network = network.to(device)
    if execution.channels_last:
        network = network.to(memory_format=torch.channels_last)
    synchronise_batch_norm(network, device)
    if execution.activation_checkpointing:
        checkpoint_activations(blocks_of(network))
    if execution.sharding == "fsdp":
        shard((network.encoder, network.decoder), blocks_of(network))
    return network


def _kept_scaling_factor(recipe: TrainAutoencoderRecipe, network: Autoencoder, num_phases: int) -> float | None:
    """That of the weights the run began with, where its first phases leave the encoder, and so latents, as they are."""
    parts = [part for phase in recipe.phases[:num_phases] for part in phase.parts]
    return network.scaling_factor if all(part.startswith("decoder") for part in parts) else None


def _is_saved(directory: Path, recipe: TrainAutoencoderRecipe, step: int) -> bool:
    """Whether the directory holds, undamaged, what this very recipe has trained in so many steps."""
    try:
        files, description = open_directory(directory), read_json(directory / OWN_CONFIG_NAME)
        whole_files = all(sha256_of_file(path) == checksum for path, checksum in files.sha256.items())
    except (CheckpointError, OSError):
        return False
    metadata, wanted = description.get("metadata"), {"recipe": recipe.model_dump(mode="json"), _STEP_KEY: step}
    return whole_files and isinstance(metadata, dict) and wanted.items() <= metadata.items()


def _save_result(
    recipe: TrainAutoencoderRecipe, run: Run, network: Autoencoder, images: TrainingImages, directory: Path
) -> None:
    """Save the trained autoencoder with its latents' scaling factor, which is measured where they may have changed."""
    trained = {_STEP_KEY: run.progress.step}
    kept = _kept_scaling_factor(recipe, network, len(recipe.phases))
    if kept is not None:
        run.logger.note(f"scaling factor {kept:.4f} as before: so are the encoder and its latents")
        _export(recipe, network, directory, kept, trained)
        return
    phase = recipe.phases[-1]
    num_batches = -(-recipe.latent_statistics_images // phase.batch_size)
    seed, plan = (recipe.seed, _STATISTICS_STREAM), BatchPlan(phase.batch_size)
    with closing(images.batches(phase.resolution, seed, plan, range(num_batches))) as batches:
        statistics = measure_latents(network, _shown(batches, num_batches, run.logger))
    if statistics.rms == 0:
        run.logger.note("warning: all latents are zero, the autoencoder has collapsed; its scaling factor is set to 1")
    factor = statistics.scaling_factor
    run.logger.note(
        f"latents: mean {statistics.mean:.4f}, rms {statistics.rms:.4f}, scaling factor 1/rms = {factor:.4f}"
    )
    measured = statistics.to_dict() | {"num_images": num_batches * phase.batch_size}
    _export(recipe, network, directory, factor, trained | {"latent_statistics": measured})


def _shown(batches: Iterable[Batch], total: int, logger: RunLogger) -> Iterator[Tensor]:
    """The pixels of batches, with the logger told before each."""
    for number, batch in enumerate(batches):
        logger.advance("latent statistics", number, total)
        yield batch.pixels


def _export(
    recipe: TrainAutoencoderRecipe,
    network: Autoencoder,
    directory: Path,
    scaling_factor: float | None = None,
    metadata: Mapping[str, object] = MappingProxyType({}),
) -> None:
    plain = build_on_meta(network.config)
    plain.load_state_dict({name: whole(value) for name, value in network.state_dict().items()}, assign=True)
    if scaling_factor is not None:
        plain.scaling_factor = scaling_factor
    if is_main():
        save_autoencoder(plain, directory, metadata={"recipe": recipe.model_dump(mode="json"), **metadata})
