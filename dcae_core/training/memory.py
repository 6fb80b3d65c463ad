"""How much memory a training will need, told without allocating the network."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_GRADIENT, _ADAM, _AVERAGE = 4, 8, 4  # bytes for each trained parameter


@dataclass(frozen=True)
class MemoryEstimate:
    """In bytes, for one process without sharding.

    Attributes:
        weights: of the whole network, float32.
        training: gradients, optimiser and average of what is trained.
        activations: what the backward pass of one part of a batch keeps, float32 (about half in 16-bit types).
    """

    weights: int
    training: int
    activations: int

    @property
    def total(self) -> int:
        """All of it. The networks that losses look through come on top."""
        return self.weights + self.training + self.activations


def estimate_memory(network: nn.Module, x: Tensor, *, ema: bool) -> MemoryEstimate:
    """Run a network on the meta device and add up.

    Args:
        network: on the meta device, with `requires_grad` and training mode as they will be.
        x: its input, on the meta device.
        ema: weights are averaged.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    per_parameter = _GRADIENT + _ADAM + (_AVERAGE if ema else 0)
    return MemoryEstimate(4 * sum(size for size, _ in sizes), per_parameter * trained, saved_bytes(network, x))


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def available_memory(device: torch.device) -> int:
    """Free bytes on a device; for CPUs what the operating system would give without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
