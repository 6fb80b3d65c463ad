"""Networks over several processes, and memory traded for time within one."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dcae_core.distributed import world_size


def replicate(module: nn.Module) -> nn.Module:
    """`module` with gradients averaged over processes; itself where there is one process or nothing to train."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    # Buffers are BatchNorm statistics, which `synchronise_batch_norm` keeps equal already.
    return DistributedDataParallel(module, broadcast_buffers=False)


def shard(roots: Iterable[nn.Module], blocks: Iterable[nn.Module]) -> None:
    """Give each process its share of a network, in place; nothing where there is one process.

    `roots` are called from outside and together hold every parameter; these become distributed. `blocks`, modules
    inside them, are gathered one at a time when they run.
    """
    if world_size() == 1:
        return
    for module in (*blocks, *roots):
        fully_shard(module)


@contextmanager
def without_synchronisation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, backward passes leave gradients in the process they were made in."""
    sharded = [part for module in modules for part in module.modules() if isinstance(part, FSDPModule)]
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        for part in sharded:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in sharded:
                part.set_requires_gradient_sync(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over processes. All processes must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, spread over processes as `reference` is."""
    tensor = tensor.to(reference.device)
    if isinstance(reference, DTensor):
        return distribute_tensor(tensor, reference.device_mesh, reference.placements)
    return tensor


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm see the batches of all processes, in place; nothing where there is one process."""
    if world_size() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _GlooBatchNorm2d


class _GlooBatchNorm2d(nn.BatchNorm2d):
    """As `nn.SyncBatchNorm`, which torch has for accelerators only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        from torch.distributed.nn.functional import all_reduce

        count = x.numel() // x.shape[1] * world_size()
        exact = x.float()  # as torch's own does; under autocast x may have 8 bits
        sums = all_reduce(torch.stack([exact.sum(dim=(0, 2, 3)), exact.square().sum(dim=(0, 2, 3))]), dist.ReduceOp.SUM)
        mean, square = sums / count
        variance = square - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (exact * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(x.dtype)


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep its input only, in place; parameter names stay. A third more time for the whole network."""
    for block in blocks:
        # Only BatchNorm's statistics need contexts, and torch.compile takes none.
        keep: dict[str, Any] = {"use_reentrant": False}
        if next(block.buffers(), None) is not None:
            keep["context_fn"] = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, **keep)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _buffers_unchanged(block)


@contextmanager
def _buffers_unchanged(block: nn.Module) -> Iterator[None]:
    """The second pass must not count its batch in BatchNorm's statistics again."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:  # the second pass ends with an exception as soon as nothing more is needed from it
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
