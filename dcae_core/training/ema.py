"""The exponential moving average of a network's weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from dcae_core.training.parallel import spread_like


def ema_decay(step: int, decay: float, warmup_steps: int) -> float:
    """How much of the average stays at step 1, 2, ...: `decay`, reached gradually.

    Source: decay * (1 - exp(-step / 2000)), efficientvit `models/utils/ema.py` as used for the published networks.
    """
    return decay * (1.0 - math.exp(-step / warmup_steps)) if warmup_steps else decay


class Ema:
    """Averages in float32 of those parameters that are trained. Buffers and frozen parameters are the network's own.

    Costs 4 bytes per trained parameter and one pass over them per step.

    Args:
        network: whose parameters; those with `requires_grad` now are the ones that are averaged.
        decay: how much of the average stays at each step, once warm.
        warmup_steps: see `ema_decay`.

    Attributes:
        num_updates: steps averaged over so far.
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
