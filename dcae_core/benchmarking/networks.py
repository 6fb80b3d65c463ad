"""The networks that benchmarks run: loaded where their weights are at hand, else with random weights.

Speed does not depend on the weights, so nothing is downloaded for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dcae_core.checkpoints.autoencoders import load_autoencoder
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.checkpoints.hub import is_release_cached
from dcae_core.checkpoints.layouts import to_diffusers, to_diffusers_config
from dcae_core.errors import UsageError
from dcae_core.models import build_denoiser
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.configs import DenoiserConfig
from dcae_core.zoo import (
    AUTOENCODERS,
    DENOISERS,
    EMBEDDED_AUTOENCODER,
    find_autoencoder,
    find_denoiser,
    unknown_model,
)

DEFAULT_DENOISER = "dc-ae-f32c32-in-1.0-uvit-s-in-512px"

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class NamedAutoencoder:
    """An autoencoder as it was read, not yet prepared."""

    name: str
    network: Autoencoder
    random_weights: bool


@dataclass(frozen=True)
class NamedDenoiser:
    """A diffusion network, in evaluation mode, and what belongs to it.

    Attributes:
        name: for tables.
        prediction: "epsilon", "epsilon_variance" or "velocity".
        autoencoder: zoo name, or whatever `open_autoencoder` takes; None is the embedded one.
    """

    name: str
    network: nn.Module
    config: DenoiserConfig
    prediction: str
    autoencoder: str | None
    random_weights: bool


def notes_about(opened: NamedAutoencoder | NamedDenoiser) -> list[str]:
    """What a reader of its figures has to know."""
    return [f"{opened.name}: random weights, as none are cached"] if opened.random_weights else []


def open_autoencoder(model: str | None, device: torch.device, dtype: torch.dtype) -> NamedAutoencoder:
    """The plain autoencoder that `model` names; that of its latents where it names a diffusion model."""
    if model is not None and (denoiser := find_denoiser(model)) is not None:
        model = denoiser.autoencoder
    entry = None if model is None or Path(model).exists() else find_autoencoder(model)
    if model is None or Path(model).exists() or (entry is not None and is_release_cached(entry)):
        network = load_autoencoder(model, device=device, dtype=dtype, prepare=False)
        if not isinstance(network, Autoencoder):
            raise UsageError(f"{model} is a KL autoencoder, which `dcae bench` cannot count")
        return NamedAutoencoder(Path(model or EMBEDDED_AUTOENCODER).name, network, random_weights=False)
    if entry is None:
        raise unknown_model(str(model), [*AUTOENCODERS, *DENOISERS])
    network = with_random_weights(lambda: build_on_meta(entry.config), device, dtype)
    network.scaling_factor = entry.scaling_factor
    return NamedAutoencoder(entry.name, network.eval(), random_weights=True)


def open_denoiser(model: str | None, device: torch.device, dtype: torch.dtype, resolution: int) -> NamedDenoiser:
    """The diffusion network that `model` names, for images of `resolution` pixels; by default the smallest released.

    Loaded weights have the resolution that they were trained for; another one takes random weights. UsageError where it
    is no multiple of the autoencoder's ratio.
    """
    if model is not None and Path(model).exists():
        files = locate_diffusion(model)
        parts = read_diffusion(files, device=device, dtype=dtype)
        return NamedDenoiser(files.name, parts.denoiser, parts.config, parts.prediction, files.autoencoder, False)
    entry = find_denoiser(model or DEFAULT_DENOISER)
    if entry is None:
        raise unknown_model(str(model), list(DENOISERS))
    ratio = AUTOENCODERS[entry.autoencoder].config.spatial_compression_ratio
    config = entry.config.replace(input_size=_latent_size(resolution, ratio))
    if config == entry.config and is_release_cached(entry):
        parts = read_diffusion(locate_diffusion(entry.name), device=device, dtype=dtype)
        return NamedDenoiser(entry.name, parts.denoiser, config, entry.prediction, entry.autoencoder, False)
    network = random_denoiser(config, device, dtype)
    return NamedDenoiser(entry.name, network, config, entry.prediction, entry.autoencoder, True)


def random_denoiser(config: DenoiserConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A diffusion network with random weights, in evaluation mode."""

    def build() -> nn.Module:
        with torch.device("meta"):
            return build_denoiser(config)

    return with_random_weights(build, device, dtype).eval()


def with_random_weights(build: Callable[[], Network], device: torch.device, dtype: torch.dtype) -> Network:
    """A network built on the meta device, with weights that keep values near the size of its inputs.

    Faster than the initial values of training, which draw from truncated normal distributions.
    """
    network = build().to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() < 2:
                tensor.fill_(float(name.endswith(("weight", "running_var"))))
            else:
                bound = tensor[0].numel() ** -0.5
                tensor.uniform_(-bound, bound)
    return network


def diffusers_peer(ours: Autoencoder) -> nn.Module:
    """The peer: diffusers' `AutoencoderDC` with the weights of a plain autoencoder of ours, in the same memory.

    UsageError where diffusers is not installed, or cannot express the network.
    """
    try:
        from diffusers import AutoencoderDC
    except ImportError as error:
        raise UsageError("--against diffusers: it is not installed; pip install 'dcae[diffusers]'") from error
    settings = to_diffusers_config(ours.config, ours.scaling_factor)
    with torch.device("meta"):
        peer = AutoencoderDC.from_config(settings)
    peer.load_state_dict(to_diffusers(ours.config, ours.state_dict()), assign=True)
    return peer.eval().requires_grad_(False)


def _latent_size(resolution: int, ratio: int) -> int:
    if resolution % ratio:
        raise UsageError(f"--resolution {resolution} is not a multiple of {ratio}, as this autoencoder needs")
    return resolution // ratio
