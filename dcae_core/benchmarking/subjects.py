"""What is measured: encoding, decoding, sampling, training steps, reading latents."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.benchmarking.measuring import Contestant, Subject, held_bytes
from dcae_core.benchmarking.networks import (
    NamedAutoencoder,
    NamedDenoiser,
    diffusers_peer,
    notes_about,
    open_autoencoder,
    open_denoiser,
)
from dcae_core.checkpoints.denoisers import DiffusionParts
from dcae_core.data.batches import Batch
from dcae_core.data.images import tensor_to_uint8, uint8_to_tensor
from dcae_core.data.latents import DatasetPlan, LatentDataset, LatentDatasetWriter
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.data.latents.manifest import EncoderRecord, TransformRecord
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.errors import UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.compilation import CompileMode, repays_compiling
from dcae_core.models.complexity import autoencoder_complexity, denoiser_complexity
from dcae_core.models.inference import for_run, prepare_for_inference
from dcae_core.pipelines.generate import DiffusionPipeline
from dcae_core.pipelines.tiling import reconstruct_pixels
from dcae_core.recipes.settings import ExecutionSettings, OptimiserSettings
from dcae_core.recipes.train_ae import LossSettings, PhaseSettings
from dcae_core.recipes.train_diffusion import DenoiserSettings, TrainDiffusionRecipe
from dcae_core.training.loop import Loop, LoopSettings, StopSignals, loss_scaler
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import Progress, SilentLogger, Task
from dcae_core.training.train_ae import AutoencoderTask
from dcae_core.training.train_diffusion import DiffusionTask, TrainingNoise

DIFFUSERS, PLAIN = "diffusers", "plain"
PEERS = (DIFFUSERS, PLAIN)


@dataclass(frozen=True)
class BenchSettings:
    """One run of `dcae bench`.

    Attributes:
        dtype: of the networks; of training, the type of matrix products.
        model: a zoo name, hub id or directory; None takes the embedded autoencoder and the smallest released denoiser.
        batch: images, latents or samples of one call.
        repeats: timed rounds.
        num_steps: of sampling; None is the sampler's default.
        guidance_scale: of sampling; other than 1 it doubles the work.
        plain: measure the network as it was published, not the prepared one.
        compile: whether ours runs compiled; auto as in a run that is long enough.
        against: what to run in alternation, of `PEERS`.
    """

    device: torch.device
    dtype: torch.dtype
    model: str | None = None
    resolution: int = 512
    batch: int = 1
    repeats: int = 5
    num_steps: int | None = None
    guidance_scale: float = 1.0
    plain: bool = False
    compile: CompileMode = "auto"
    against: tuple[str, ...] = ()

    @property
    def compiles(self) -> bool:
        """Whether ours runs compiled, as in the commands: a benchmark stands for a run that is long."""
        return not self.plain and repays_compiling(self.device, math.inf, self.compile)

    @property
    def compile_mode(self) -> CompileMode:
        """The same for `for_run`, which need not ask again."""
        return "always" if self.compiles else "never"

    @property
    def our_name(self) -> str:
        """What tables call it."""
        return f"{_OURS} compiled" if self.compiles else _OURS


_OURS = "dcae"


@dataclass(frozen=True)
class _Way:
    """One implementation of an autoencoder, as three functions."""

    name: str
    network: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    reconstruct: Callable[[Tensor], Tensor]


def autoencoder_subjects(whats: list[str], settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """Subjects "encode", "decode" and "reconstruct", and notes for the reader.

    Every implementation is in memory at once: one more copy of the weights for each of `settings.against`.
    """
    opened = open_autoencoder(settings.model, settings.device, settings.dtype)
    config, size = opened.network.config, settings.resolution
    ratio = config.spatial_compression_ratio
    if size % ratio:
        raise UsageError(f"--resolution {size} is not a multiple of {ratio}, as {opened.name} needs")
    ways = _ways(opened, settings)
    encoding, decoding = autoencoder_complexity(config, size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (settings.batch, 3, size, size), dtype=torch.uint8, generator=generator)
    images = uint8_to_tensor(pixels).to(settings.device, settings.dtype)
    with torch.inference_mode():
        latents = ways[-1].encode(images).clone()
    moved = images.nbytes + latents.nbytes
    calls: dict[str, tuple[int, int, Callable[[_Way], Callable[[], Tensor]]]] = {
        "encode": (encoding.macs, moved, lambda way: lambda: way.encode(images)),
        "decode": (decoding.macs, moved, lambda way: lambda: way.decode(latents)),
        "reconstruct": (
            encoding.macs + decoding.macs,
            2 * pixels.nbytes,
            lambda way: lambda: torch.stack([way.reconstruct(image) for image in pixels]),
        ),
    }
    subjects = []
    for what in whats:
        macs, moved_bytes, call_of = calls[what]
        contestants = [Contestant(way.name, _inference(call_of(way)), _holder(way.network)) for way in ways]
        setting = f"{opened.name}, {size} px, batch {settings.batch}"
        subjects.append(Subject(what, setting, settings.batch, settings.batch * macs, moved_bytes, contestants))
    return subjects, notes_about(opened)


def _ways(opened: NamedAutoencoder, settings: BenchSettings) -> list[_Way]:
    """Ours, then what it is compared with; the peer takes the weights before ours are prepared."""
    network = opened.network
    others = []
    for name in settings.against:
        if name == DIFFUSERS:
            others.append(_diffusers_way(diffusers_peer(network), settings))
        elif name == PLAIN:
            others.append(_our_way(f"{_OURS} plain", copy.deepcopy(network)))
    if settings.plain:
        return [_our_way(f"{_OURS} plain", network), *others]
    ours = for_run(prepare_for_inference(network), math.inf, settings.compile_mode)
    return [_our_way(settings.our_name, ours), *others]


def _our_way(name: str, network: Autoencoder) -> _Way:
    def reconstruct(pixels: Tensor) -> Tensor:
        return reconstruct_pixels(network, pixels).pixels

    return _Way(name, network, network.encode, network.decode, reconstruct)


def _diffusers_way(peer: nn.Module, settings: BenchSettings) -> _Way:
    def encode(x: Tensor) -> Tensor:
        return peer.encode(x).latent  # type: ignore[operator]

    def decode(z: Tensor) -> Tensor:
        return peer.decode(z).sample  # type: ignore[operator]

    def whole(pixels: Tensor) -> Tensor:
        image = uint8_to_tensor(pixels)[None].to(settings.device, settings.dtype)
        return tensor_to_uint8(decode(encode(image))[0].float()).cpu()

    return _Way(DIFFUSERS, peer, encode, decode, whole)


def _inference(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return call()

    return run


def _holder(network: nn.Module) -> Callable[[], int]:
    return lambda: held_bytes(network)


_UNKNOWN_SCALE = 1.0  # random weights have none, and speed does not depend on it


def denoise_subject(opened: NamedDenoiser, settings: BenchSettings) -> Subject:
    """One evaluation on a batch of latents at one time."""
    config, batch = opened.config, settings.batch
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.in_channels, *config.latent_size, generator=generator)
    x = x.to(settings.device, settings.dtype)
    t = torch.tensor(0.5, device=settings.device)
    y = torch.zeros(batch, dtype=torch.long, device=settings.device)
    ways = {settings.our_name: for_run(opened.network, math.inf, settings.compile_mode)}
    if settings.compiles and PLAIN in settings.against:
        ways[f"{_OURS} plain"] = opened.network

    def contestant(name: str, network: nn.Module) -> Contestant:
        def call() -> Tensor:
            with torch.inference_mode():
                return network(x, t, y)

        return Contestant(name, call, lambda: held_bytes(network))

    macs = batch * denoiser_complexity(config).macs
    contestants = [contestant(name, network) for name, network in ways.items()]
    return Subject("denoise", f"{opened.name}, batch {batch}", batch, macs, 2 * x.nbytes, contestants)


def sample_subject(opened: NamedDenoiser, settings: BenchSettings) -> tuple[Subject, list[str]]:
    """A batch of classes to images: noise, every step of the sampler with guidance, decoding."""
    autoencoder = open_autoencoder(opened.autoencoder, settings.device, settings.dtype)
    decoder = autoencoder.network if settings.plain else prepare_for_inference(autoencoder.network)
    scale = autoencoder.network.scaling_factor or _UNKNOWN_SCALE
    network = for_run(opened.network, math.inf, settings.compile_mode)
    parts = DiffusionParts(network, decoder, opened.prediction, scale, opened.config)
    pipeline = DiffusionPipeline(parts, compile=settings.compile_mode)
    classes = [number % max(1, opened.config.num_classes) for number in range(settings.batch)]

    def call() -> Tensor:
        return pipeline.generate(
            classes, settings.guidance_scale, num_steps=settings.num_steps, batch_size=settings.batch
        ).latents

    evaluated = _count_evaluated(network, call)
    size = max(opened.config.latent_size) * decoder.spatial_compression_ratio
    decoding = autoencoder_complexity(decoder.config, size)[1]
    macs = evaluated * denoiser_complexity(opened.config).macs + settings.batch * decoding.macs
    contestant = Contestant(settings.our_name, call, lambda: held_bytes(network, decoder))
    per_sample = evaluated / settings.batch
    setting = f"{opened.name}, {size} px, batch {settings.batch}, {per_sample:g} evaluations each"
    notes = notes_about(autoencoder)
    return Subject("sample", setting, settings.batch, macs, settings.batch * 3 * size**2, [contestant]), notes


def denoiser_subjects(whats: list[str], settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """Subjects "denoise" and "sample", and notes for the reader."""
    opened = open_denoiser(settings.model, settings.device, settings.dtype, settings.resolution)
    notes = notes_about(opened)
    subjects = []
    for what in whats:
        if what == "denoise":
            subjects.append(denoise_subject(opened, settings))
        else:
            subject, more = sample_subject(opened, settings)
            subjects.append(subject)
            notes += more
    return subjects, notes


def _count_evaluated(network: nn.Module, call: Callable[[], object]) -> int:
    """How many latents one call sends through the network, guidance's second half among them."""
    rows = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += inputs[0].shape[0]

    hook = network.register_forward_pre_hook(count)
    try:
        call()
    finally:
        hook.remove()
    return rows


_SHAPE = (32, 16, 16)
_NUM_SHARDS, _SHARD_SIZE = 8, 512
_BATCH = 256


def reading_subject(directory: Path) -> Subject:
    """Random batches of 256 latents of 32x16x16 from a dataset of 67 MB, which is written to `directory` first."""
    dataset = write_noise(directory, _NUM_SHARDS, _SHARD_SIZE)
    batches = np.random.default_rng(0).integers(0, len(dataset), (64, _BATCH))
    order = itertools.cycle(batches)

    def call() -> None:
        dataset.read(next(order))

    setting = f"{' x '.join(map(str, _SHAPE))} float16, batch {_BATCH}, page cache warm"
    moved = _BATCH * dataset.manifest.item_bytes
    return Subject("latent-reading", setting, _BATCH, None, moved, [Contestant("dcae", call)])


def write_noise(directory: Path, num_shards: int, shard_size: int) -> LatentDataset:
    """A dataset of random latents of 32x16x16 float16, 16 KB each; shard i follows from i."""
    plan = DatasetPlan(
        encoder=EncoderRecord(name="noise", scaling_factor=1.0),
        transform=TransformRecord(resolution=512),
        encoding={},
        dtype="float16",
        latent_shape=_SHAPE,
        classes=[],
        num_shards=num_shards,
    )
    writer = LatentDatasetWriter(directory, plan)
    writer.begin()
    for number in range(num_shards):
        latents = torch.randn(shard_size, *_SHAPE, generator=torch.Generator().manual_seed(number)).half()
        names = [str(number * shard_size + item) for item in range(shard_size)]
        writer.write_shard(number, latents, torch.zeros(shard_size, dtype=torch.long), names, [])
    writer.finish()
    return LatentDataset(directory)


_FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice as much as the forward pass
_STEPS = 10**6  # of the recipe: far more than are timed
_OPTIMISER = OptimiserSettings(learning_rate=1e-4, betas=[0.99, 0.99], weight_decay=0.03, clip_gradient_norm=1.0)
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def denoiser_step(opened: NamedDenoiser, settings: BenchSettings, directory: Path) -> Subject:
    """One step of the training loop: loss, gradients, AdamW, averaged weights of a diffusion network. Data is at hand.

    The network's own weights are trained, so it is good for nothing else afterwards. `directory` stands for a run's.
    """
    config, batch = opened.config, settings.batch
    recipe = TrainDiffusionRecipe(
        run_dir=str(directory),
        latents="",
        network=DenoiserSettings(
            architecture=config.architecture,  # type: ignore[arg-type]
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            depth=config.depth,
            num_heads=config.num_heads,
        ),
        objective=opened.prediction,  # type: ignore[arg-type]
        steps=_STEPS,
        batch_size=batch,
        optimiser=_OPTIMISER,
        execution=_execution(settings),
    )
    task = DiffusionTask(opened.network, recipe, 1.0, None)
    shape = (batch, config.in_channels, *config.latent_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    numbers = np.arange(batch)
    read = LatentBatch(latents, torch.zeros(batch, dtype=torch.long), numbers, numbers, 0.0)
    data = TrainingNoise(0, OBJECTIVES[opened.prediction], recipe.label_dropout, config.num_classes).complete(read)
    macs = _FORWARD_AND_BACKWARD * batch * denoiser_complexity(config).macs
    setting = f"{opened.name}, batch {batch}, {recipe.execution.precision}"
    return _subject(task, data, setting, batch, macs, latents.nbytes, settings, directory)


def autoencoder_step(settings: BenchSettings, directory: Path) -> tuple[Subject, list[str]]:
    """The same for a whole autoencoder on L1 alone: the pretrained networks of other losses are left out."""
    opened = open_autoencoder(settings.model, settings.device, torch.float32)
    batch, size = settings.batch, settings.resolution
    phase = PhaseSettings(
        name="full",
        resolution=size,
        batch_size=batch,
        steps=_STEPS,
        losses=LossSettings(l1=1.0),
        optimiser=_OPTIMISER,
    )
    task = AutoencoderTask(opened.network, phase, (0,), _execution(settings), None)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    data = Batch(pixels, ("noise",) * batch, (), 0.0)
    encoding, decoding = autoencoder_complexity(opened.network.config, size)
    macs = _FORWARD_AND_BACKWARD * batch * (encoding.macs + decoding.macs)
    setting = f"{opened.name}, {size} px, batch {batch}, {_PRECISIONS[settings.dtype]}, L1 alone"
    notes = notes_about(opened)
    return _subject(task, data, setting, batch, macs, pixels.nbytes, settings, directory), notes


def _execution(settings: BenchSettings) -> ExecutionSettings:
    return ExecutionSettings(
        precision=_PRECISIONS[settings.dtype],  # type: ignore[arg-type]
        compile=settings.compile_mode,
        channels_last=settings.device.type == "cuda",
    )


def _subject(
    task: Task,
    data: Any,
    setting: str,
    batch: int,
    macs: int,
    moved_bytes: int,
    settings: BenchSettings,
    directory: Path,
) -> Subject:
    loop_settings = LoopSettings(
        phase="benchmark",
        steps=_STEPS,
        total_steps=_STEPS,
        batch_size=batch,
        accumulation=1,
        checkpoint_every=_STEPS,
        validate_every=None,
        log_every=_STEPS,
    )
    scaler, run = loss_scaler(settings.device, _PRECISIONS[settings.dtype]), RunDirectory(directory)
    loop = Loop(task, loop_settings, run, Progress(), scaler, StopSignals(), SilentLogger(), num_workers=0)
    batches = itertools.repeat(data)
    contestant = Contestant(settings.our_name, lambda: loop.step(batches), lambda: _training_bytes(task))
    return Subject("train-step", setting, batch, macs, moved_bytes, [contestant])


def _training_bytes(task: Task) -> int:
    """Weights, their average, and what the optimisers keep."""
    tensors: list[Tensor] = list(task.ema.state_dict().values()) if task.ema is not None else []
    for trained in task.networks.values():
        tensors += trained.network.parameters()
        for state in trained.optimiser.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
