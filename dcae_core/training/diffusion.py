"""Training a diffusion network on latents, as the loop's task."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.diffusion_batches import DiffusionBatch
from dcae_core.training.ema import Ema, averaged
from dcae_core.training.parallel import replicate, without_synchronisation
from dcae_core.training.players import build_player
from dcae_core.training.task import Loss, Player

MODEL = "model"
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Validation(Protocol):
    """Looks at the network now and then."""

    def measure(self, network: nn.Module, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures of the network as it is, or None where `stop` turned true on the way."""


class DiffusionTask:
    """Trains a network to undo noise.

    Args:
        network: on its device, called as `network(x, t, y)`.
        recipe: the settings.
        scaling_factor: latents are multiplied by it.
        validation: what looks at the network, or None.
    """

    def __init__(
        self, network: nn.Module, recipe: TrainDiffusionRecipe, scaling_factor: float, validation: Validation | None
    ) -> None:
        execution = recipe.execution
        self.network = network
        self._objective = OBJECTIVES[recipe.objective]
        self._augmentation_weight = recipe.augmentation.weight if recipe.augmentation is not None else 0.0
        self._scaling_factor = scaling_factor
        self._validation = validation
        self._device = next(network.parameters()).device
        self._dtype = _AUTOCAST[execution.precision]
        network.train()
        self.ema = Ema(network, recipe.ema.decay, recipe.ema.warmup_steps) if recipe.ema is not None else None
        self.players: dict[str, Player] = {MODEL: build_player(network, recipe.optimiser, recipe.steps)}
        self._forward = replicate(network) if execution.sharding == "ddp" else network
        if execution.compile:
            self._forward.compile()

    def losses(self, batch: DiffusionBatch, step: int) -> Iterator[Loss]:
        """The loss of a part of a batch."""
        data = batch.latents.to(self._device, non_blocking=True).float() * self._scaling_factor
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

        return self._objective.losses(model, data, noise, times)

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Within it, gradients are summed up in each process alone."""
        return without_synchronisation([self._forward])

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Pictures and figures of the averaged weights."""
        if self._validation is None:
            return {}
        with averaged(self.network, self.ema):
            return self._validation.measure(self.network, step, stop)
