"""One phase of training an autoencoder, as the loop's task."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.data.batches import Batch
from dcae_core.data.pictures import uint8_to_tensor
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.recipes.train_ae import PhaseSettings
from dcae_core.recipes.training import OptimiserSettings
from dcae_core.training.ema import Ema
from dcae_core.training.losses.reconstruction import ReconstructionLoss
from dcae_core.training.optimisers import build_adamw
from dcae_core.training.parts import set_training_mode, train_only
from dcae_core.training.schedules import learning_rate_at
from dcae_core.training.task import Loss, Player
from dcae_core.training.validation import ReconstructionValidation

AUTOENCODER = "autoencoder"
_CHANNELS_STREAM = 2  # tells the chance of latent channels from that of crops
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Reconstruct(nn.Module):
    """Encoder and decoder as one forward pass, which is what data-parallel wrappers need."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, latent_channels: int | None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the same shape, through the leading channels of the latent (all if None)."""
        return self.network.decode(self.network.encode(x, latent_channels))


class AutoencoderTask:
    """Trains the parts of an autoencoder that a phase names.

    Args:
        network: on its device; which parts take gradients is set here.
        phase: the settings.
        seed: numbers that chance follows from.
        precision: fp32, bf16 or fp16 for matrix products and convolutions.
        validation: held-out pictures, or None.
    """

    def __init__(
        self,
        network: Autoencoder,
        phase: PhaseSettings,
        seed: tuple[int, ...],
        precision: str,
        validation: ReconstructionValidation | None,
    ) -> None:
        self.network, self.phase = network, phase
        self._seed = seed
        self._validation = validation
        self._device = next(network.parameters()).device
        self._dtype = _AUTOCAST[precision]
        train_only(network, phase.parts, phase.adjacent_stages)
        set_training_mode(network)
        self.ema = Ema(network, phase.ema.decay, phase.ema.warmup_steps) if phase.ema is not None else None
        self.players = {AUTOENCODER: build_player(network, phase.optimiser, phase.steps)}
        self._reconstruct = Reconstruct(network)
        self._criterion = ReconstructionLoss(phase.losses, self._device)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """The reconstruction loss of a part of a batch."""
        pictures = uint8_to_tensor(batch.pixels.to(self._device, non_blocking=True))
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            reconstructions = self._reconstruct(pictures, self._choose_latent_channels(step))
        value, terms = self._criterion(reconstructions, pictures)
        yield Loss(AUTOENCODER, value, {"loss": value.detach()} | terms)

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Nothing to hold back in a single process."""
        return nullcontext()

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures of the averaged weights on the held-out pictures."""
        if self._validation is None:
            return {}
        self.network.eval()
        try:
            with self.ema.applied() if self.ema is not None else nullcontext():
                return self._validation.measure(self.network, step, stop)
        finally:
            set_training_mode(self.network)

    def _choose_latent_channels(self, step: int) -> int | None:
        """The same in every process and every part of the step.

        Source: structured latent space, DC-AE 1.5 (arXiv 2508.00413), section 3.2.
        """
        if self.phase.latent_channels is None:
            return None
        generator = np.random.default_rng([*self._seed, _CHANNELS_STREAM, step])
        return int(generator.choice(self.phase.latent_channels))


def build_player(network: nn.Module, settings: OptimiserSettings, steps: int) -> Player:
    """A network with its optimiser and learning rate, as a recipe describes them."""

    def rate(step: int) -> float:
        return learning_rate_at(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            total_steps=steps,
            final_fraction=settings.final_fraction,
        )

    optimiser = build_adamw(
        network,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
        epsilon=settings.epsilon,
    )
    return Player(network, optimiser, rate, settings.clip_gradient_norm)
