"""The networks; here, the diffusion networks by the name of their architecture."""

from typing import Any

from torch import nn

from dcae_core.errors import unknown_name
from dcae_core.models.denoiser import DenoiserConfig
from dcae_core.models.dit import DiT, DiTConfig
from dcae_core.models.uvit import UViT, UViTConfig

ARCHITECTURES: dict[str, tuple[type[DenoiserConfig], type[nn.Module]]] = {
    "uvit": (UViTConfig, UViT),
    "dit": (DiTConfig, DiT),
}


def denoiser_config(values: dict[str, Any]) -> DenoiserConfig:
    """The configuration with these values; `architecture` says of which network, what is left out has its default.

    UsageError at an unknown architecture or setting, or values that no network can be built from.
    """
    settings = dict(values)
    architecture = settings.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise unknown_name("diffusion network", architecture, ARCHITECTURES)
    return ARCHITECTURES[architecture][0]().replace(**settings)


def build_denoiser(config: DenoiserConfig) -> nn.Module:
    """The network of this configuration, with fresh random weights from PyTorch's global generator."""
    return ARCHITECTURES[config.architecture][1](config)
