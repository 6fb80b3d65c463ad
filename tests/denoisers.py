"""Small diffusion networks that several tests use."""

from typing import Any

import torch
from torch import nn

from dcae_core import create_denoiser
from tests.golden import golden_state

CLASSES = torch.tensor([3, 207, 999, 42])
NULL_CLASS = 1000

_GOLDEN = {
    "uvit_tiny": ("uvit", {"input_size": 8, "hidden_size": 128, "depth": 4, "num_heads": 4}),
    "uvit_tiny_p2": (
        "uvit",
        {"input_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 128, "depth": 4, "num_heads": 4},
    ),
    "dit_tiny": ("dit", {"input_size": 8, "hidden_size": 128, "depth": 3, "num_heads": 4}),
    "uvit_s_f32": ("uvit", {}),
}


def golden_denoiser(name: str, **overrides: Any) -> nn.Module:
    """A network of golden/README.md with its golden weights, in evaluation mode."""
    architecture, settings = _GOLDEN[name]
    return _fill(create_denoiser(architecture, **settings | overrides))


def random_denoiser(architecture: str, **overrides: Any) -> nn.Module:
    """A network of a few thousand weights drawn by name, on latents (4, 8, 8), with 10 classes."""
    settings = {"input_size": 8, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return _fill(create_denoiser(architecture, **settings | overrides))


def _fill(network: nn.Module) -> nn.Module:
    """Give every parameter its golden value; a fixed table of positions stays."""
    shapes = {key: list(parameter.shape) for key, parameter in network.named_parameters()}
    network.load_state_dict(golden_state(shapes), strict=False)
    return network.eval()
