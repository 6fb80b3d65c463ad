"""Random Inception weights that anyone can rebuild: each tensor drawn from a generator seeded by its own name."""

import zlib

import numpy as np
import torch

from dcae_core.metrics.inception_network import InceptionV3


def random_inception_state() -> dict[str, torch.Tensor]:
    """A state dict with the published names and shapes whose activations neither vanish nor explode."""
    state = {}
    for name, tensor in InceptionV3().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = rng.standard_normal(tensor.shape, dtype=np.float32)
        if name.endswith("running_var"):
            values = 0.5 + values**2
        elif name.endswith("bn.weight"):
            values = 1.2 + 0.2 * values
        elif tensor.ndim > 1:
            values *= (2 / np.prod(tensor.shape[1:])) ** 0.5
        else:
            values *= 0.1
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state
