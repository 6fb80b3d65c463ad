"""What moves weights: the optimiser, its learning rate, and the average of the weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcae_core.recipes.settings import OptimiserSettings
from dcae_core.training.parallel import spread_like


def learning_rate_at(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    schedule: str,
    total_steps: int,
    final_fraction: float = 0.0,
) -> float:
    """The learning rate that step 0, 1, ... uses.

    Args:
        step: from 0.
        peak: the rate after warm-up.
        warmup_steps: step i of them uses peak * (i + 1) / warmup_steps.
        schedule: "constant", or "cosine": from `peak` at the first step after warm-up to the final rate at the last.
        total_steps: how many there are.
        final_fraction: where a cosine ends, as a fraction of `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))


def ema_decay(step: int, decay: float, warmup_steps: int) -> float:
    """How much of the average stays at step 1, 2, ...: `decay`, reached gradually.

    Source: decay * (1 - exp(-step / 2000)), efficientvit `models/utils/ema.py` as used for the published networks.
    """
    return decay * (1.0 - math.exp(-step / warmup_steps)) if warmup_steps else decay


class Ema:
    """Averages in float32 of those parameters that are trained. Buffers and frozen parameters are the network's own.

    Costs 4 bytes per trained parameter and one pass over them per step. Parameters with `requires_grad` at the time of
    construction are averaged; `ema_decay` says how fast, from `num_updates`, the steps averaged over so far.
    """

    def __init__(self, network: nn.Module, decay: float, warmup_steps: int) -> None:
        self._parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().float().clone() for name, value in self._parameters.items()}
        self._decay, self._warmup_steps = decay, warmup_steps
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights into the average."""
        self.num_updates += 1
        weight = 1.0 - ema_decay(self.num_updates, self._decay, self._warmup_steps)
        present = [value.detach().float() for value in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), present, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the body the network has the averaged weights."""
        kept = {name: value.detach().clone() for name, value in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._parameters.items():
                    value.copy_(kept[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Give the network the averaged weights for good."""
        for name, value in self._parameters.items():
            value.copy_(self._averages[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], num_updates: int) -> None:
        """Go on from saved averages."""
        assert state.keys() == self._averages.keys(), "checkpoint of other trained parameters"
        for name, value in self._averages.items():
            value.copy_(spread_like(state[name], value))
        self.num_updates = num_updates


@contextmanager
def averaged(network: nn.Module, ema: Ema | None) -> Iterator[None]:
    """Within the body the network is as it is judged: in evaluation mode, with averaged weights if there are any."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with ema.applied() if ema is not None else nullcontext():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def build_adamw(
    network: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: str = "matrices",
) -> torch.optim.AdamW:
    """AdamW for the parameters that gradients reach.

    `decay` "matrices" exempts biases, norms and other vectors from weight decay; "all" exempts nothing. The groups are
    the same for both, so that either goes on from the other's checkpoints.

    Costs 8 bytes per trained parameter once it has made a step. The update is one pass over memory (`fused`), on a CPU
    a sixth of the time of PyTorch's default, on CUDA one kernel instead of a dozen.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {
            "params": [parameter for parameter in trained if parameter.ndim <= 1],
            "weight_decay": weight_decay if decay == "all" else 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)


@dataclass
class TrainedNetwork:
    """A network with its optimiser.

    Attributes:
        network: the plain network, whose weights are saved.
        learning_rate: phase step from 0 -> rate.
        clip_gradient_norm: largest norm of its gradients, or None.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    clip_gradient_norm: float | None = None


def build_trained_network(network: nn.Module, settings: OptimiserSettings, steps: int) -> TrainedNetwork:
    """An optimiser for what takes gradients in `network` now, over a phase of `steps` steps."""

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
        decay=settings.decay,
    )
    return TrainedNetwork(network, optimiser, rate, settings.clip_gradient_norm)
