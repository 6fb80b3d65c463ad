"""Training steps as benchmark subjects: the same tasks, losses, optimisers and averages as `dcae train-...`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dcae_core.benchmarking.measuring import Contestant, Subject
from dcae_core.benchmarking.networks import NamedDenoiser, open_autoencoder
from dcae_core.benchmarking.settings import BenchSettings
from dcae_core.data.batches import Batch
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.models.complexity import autoencoder_complexity, denoiser_complexity
from dcae_core.recipes.train_ae import LossSettings, PhaseSettings
from dcae_core.recipes.train_diffusion import DenoiserSettings, TrainDiffusionRecipe
from dcae_core.recipes.training import ExecutionSettings, OptimiserSettings
from dcae_core.training.autoencoder import AutoencoderTask
from dcae_core.training.diffusion import DiffusionTask
from dcae_core.training.diffusion_batches import Chance
from dcae_core.training.loop import loss_scaler
from dcae_core.training.task import Task

_FORWARD_AND_BACKWARD = 3  # the backward pass multiplies twice as much as the forward pass
_STEPS = 10**6  # of the recipe: far more than are timed
_OPTIMISER = OptimiserSettings(learning_rate=1e-4, betas=[0.99, 0.99], weight_decay=0.03)
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def denoiser_step(opened: NamedDenoiser, settings: BenchSettings) -> Subject:
    """One step of training a diffusion network: loss, gradients, AdamW, averaged weights. Data is at hand.

    The network's own weights are trained, so it is good for nothing else afterwards.
    """
    config, batch = opened.config, settings.batch
    recipe = TrainDiffusionRecipe(
        run_dir="",
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
    data = Chance(0, OBJECTIVES[opened.prediction], recipe.label_dropout, config.num_classes).complete(read)
    macs = _FORWARD_AND_BACKWARD * batch * denoiser_complexity(config).macs
    setting = f"{opened.name}, batch {batch}, {recipe.execution.precision}"
    return _subject(task, data, setting, batch, macs, latents.nbytes, settings)


def autoencoder_step(settings: BenchSettings) -> tuple[Subject, list[str]]:
    """One step of training a whole autoencoder on L1 alone: the pretrained networks of other losses are left out.

    Raises:
        UsageError: no such model.
    """
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
    notes = [f"{opened.name}: random weights, as none are cached"] if opened.random_weights else []
    return _subject(task, data, setting, batch, macs, pixels.nbytes, settings), notes


def _execution(settings: BenchSettings) -> ExecutionSettings:
    return ExecutionSettings(
        precision=_PRECISIONS[settings.dtype],  # type: ignore[arg-type]
        compile=settings.compiles,
        channels_last=settings.device.type == "cuda",
    )


def _subject(
    task: Task, data: object, setting: str, batch: int, macs: int, moved_bytes: int, settings: BenchSettings
) -> Subject:
    step = _stepper(task, data, settings)
    name = "dcae compiled" if settings.compiles else "dcae"
    contestant = Contestant(name, step, lambda: _training_bytes(task))
    return Subject("train-step", setting, batch, macs, moved_bytes, [contestant])


def _stepper(task: Task, data: object, settings: BenchSettings) -> Callable[[], None]:
    scaler = loss_scaler(settings.device, _PRECISIONS[settings.dtype])

    def step() -> None:
        for player in task.players.values():
            player.optimiser.zero_grad(set_to_none=True)
        for loss in task.losses(data, 0):
            scaler.scale(loss.value).backward()
        for player in task.players.values():
            scaler.unscale_(player.optimiser)
            torch.nn.utils.clip_grad_norm_(player.network.parameters(), 1.0)
            scaler.step(player.optimiser)
        scaler.update()
        if task.ema is not None:
            task.ema.update()

    return step


def _training_bytes(task: Task) -> int:
    """Weights, their average, and what the optimisers keep."""
    tensors: list[Tensor] = list(task.ema.state_dict().values()) if task.ema is not None else []
    for player in task.players.values():
        tensors += player.network.parameters()
        for state in player.optimiser.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
