"""How large and how costly a network is, counted from the network itself without memory for its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import build_on_meta
from dcae_core.models.configs import AutoencoderConfig, DenoiserConfig

_FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Complexity:
    """The cost of one pass of a network over one image or latent.

    `num_parameters` are trained values; fixed tables do not count. `macs` are multiply-accumulates, see `count_macs`.
    """

    num_parameters: int
    macs: int


def count_parameters(network: nn.Module) -> int:
    """Number of trained values of `network`."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(call: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> int:
    """Multiply-accumulates of the convolutions and matrix products in `call(*inputs)`; norms and activations are free.

    On the meta device this computes nothing.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(*inputs)
    return counter.get_total_flops() // _FLOPS_PER_MAC


@lru_cache
def autoencoder_complexity(config: AutoencoderConfig, resolution: int = 512) -> tuple[Complexity, Complexity]:
    """What encoding and what decoding one image of `resolution` x `resolution` pixels cost; takes about 0.3 s."""
    network = build_on_meta(config).eval()
    latent_size = resolution // network.spatial_compression_ratio
    image = torch.empty(1, config.in_channels, resolution, resolution, device="meta")
    latent = torch.empty(1, config.latent_channels, latent_size, latent_size, device="meta")
    return (
        Complexity(count_parameters(network.encoder), count_macs(network.encode, image)),
        Complexity(count_parameters(network.decoder), count_macs(network.decode, latent)),
    )


@lru_cache
def denoiser_complexity(config: DenoiserConfig) -> Complexity:
    """What one evaluation on one latent costs; takes about 0.1 s."""
    with torch.device("meta"):
        network = build_denoiser(config).eval()
        latent = torch.empty(1, config.in_channels, *config.latent_size)
        time, label = torch.empty(1), torch.empty(1, dtype=torch.long)
    return Complexity(count_parameters(network), count_macs(network, latent, time, label))
