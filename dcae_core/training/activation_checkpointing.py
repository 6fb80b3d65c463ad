"""Less memory for more time: activations inside a block are computed again in the backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep its input only, in place; parameter names stay. A third more time for the whole network."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block))


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
