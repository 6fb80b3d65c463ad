"""One phase of training an autoencoder, as the loop's task."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from dcae_core.data.batches import Batch
from dcae_core.data.pictures import uint8_to_tensor
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.recipes.train_ae import PhaseSettings
from dcae_core.recipes.training import ExecutionSettings
from dcae_core.training.ema import Ema, averaged
from dcae_core.training.losses.reconstruction import ReconstructionLoss
from dcae_core.training.opponent import DISCRIMINATOR, Opponent
from dcae_core.training.parallel import replicate, without_synchronisation
from dcae_core.training.parts import set_training_mode, train_only
from dcae_core.training.players import build_player
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
        execution: number type, data parallelism, compilation.
        validation: held-out pictures, or None.
    """

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
        self.players: dict[str, Player] = {AUTOENCODER: build_player(network, phase.optimiser, phase.steps)}
        self._reconstruct: nn.Module = Reconstruct(network)
        if execution.sharding == "ddp":
            self._reconstruct = replicate(self._reconstruct)
        if execution.compile:
            self._reconstruct.compile()
        self._forward_modules = [self._reconstruct]
        self._criterion = ReconstructionLoss(phase.losses, self._device)
        self._opponent = None
        if phase.losses.adversarial is not None:
            self._opponent = Opponent(phase.losses.adversarial, phase.steps, seed, self._device)
            self.players[DISCRIMINATOR] = self._opponent.player
            self._forward_modules.append(self._opponent.module)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """The autoencoder's loss on a part of a batch, then the discriminator's if there is one."""
        pictures = uint8_to_tensor(batch.pixels.to(self._device, non_blocking=True))
        if self._channels_last:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            reconstructions = self._reconstruct(pictures, self._choose_latent_channels(step))
        value, terms = self._criterion(reconstructions, pictures)
        if self._opponent is not None and step >= self._opponent.settings.start_step:
            with self._autocast():
                fooling = self._opponent.fooling_loss(reconstructions)
            weight = self._opponent.weight(value, fooling, self._last_layer())
            value = value + weight * fooling
            terms |= {"generator": fooling.detach(), "adversarial_weight": weight}
        yield Loss(AUTOENCODER, value, {"loss": value.detach()} | terms)
        if self._opponent is not None:
            with self._autocast():
                value, terms = self._opponent.discriminating_loss(pictures, reconstructions.detach())
            yield Loss(DISCRIMINATOR, value, terms)

    def without_synchronisation(self) -> AbstractContextManager[None]:
        """Within it, gradients are summed up in each process alone."""
        return without_synchronisation(self._forward_modules)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def _last_layer(self) -> Tensor:
        """The trained weights nearest to the picture: those of the decoder's head where that is trained."""
        return [weight for weight in self.network.parameters() if weight.requires_grad and weight.ndim > 1][-1]

    def validate(self, step: int, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Figures of the averaged weights on the held-out pictures."""
        if self._validation is None:
            return {}
        with averaged(self.network, self.ema):
            return self._validation.measure(self.network, step, stop)

    def _choose_latent_channels(self, step: int) -> int | None:
        """The same in every process and every part of the step.

        Source: structured latent space, DC-AE 1.5 (arXiv 2508.00413), section 3.2.
        """
        if self.phase.latent_channels is None:
            return None
        generator = np.random.default_rng([*self._seed, _CHANNELS_STREAM, step])
        return int(generator.choice(self.phase.latent_channels))
