"""Weights go into a network whole: every key present, none left over, every shape right."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.errors import CheckpointError

_NAMED = 3


def load_strictly(network: nn.Module, state: dict[str, Tensor], where: Path, dtype: torch.dtype | None = None) -> None:
    """Give `network`, built on the meta device, these tensors; they are taken over, not copied.

    Args:
        network: what they must fit.
        state: tensors under the network's own names; emptied on the way, so that one copy of each is alive.
        where: named in the message.
        dtype: what floating-point tensors are converted to; by default the network's own types.

    Raises:
        CheckpointError: missing or unexpected keys, or wrong shapes.
    """
    expected = network.state_dict()
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        faults = [
            f"{len(keys)} {what} ({_some(keys)})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise CheckpointError(f"{where} does not fit the network: tensors {', '.join(faults)}")
    wrong = [key for key, tensor in expected.items() if tensor.shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{where} does not fit the network: {len(wrong)} tensors have another shape, first {key}: "
            f"{tuple(state[key].shape)} where the network has {tuple(expected[key].shape)}"
        )
    for key, tensor in expected.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[key] = state[key].to(target)
    network.load_state_dict(state, strict=True, assign=True)


def _some(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
