"""The networks; here, the diffusion network that a configuration describes."""

from typing import TYPE_CHECKING

from dcae_core.models.configs import DenoiserConfig

if TYPE_CHECKING:
    from torch import nn


def build_denoiser(config: DenoiserConfig) -> "nn.Module":
    """The network of this configuration, with fresh random weights from PyTorch's global generator."""
    from dcae_core.models.dit import DiT
    from dcae_core.models.uvit import UViT

    networks: dict[str, type[nn.Module]] = {"uvit": UViT, "dit": DiT}
    return networks[config.architecture](config)
