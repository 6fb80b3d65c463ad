"""Diffusion models on disk, small enough for tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dcae_core import create_autoencoder
from dcae_core.checkpoints.denoiser_files import describe_denoiser
from dcae_core.checkpoints.saving import save_autoencoder
from dcae_core.zoo import EMBEDDED_AUTOENCODER
from tests.denoisers import random_denoiser
from tests.golden import golden_state

SCALING_FACTOR = 0.5
_ARCHITECTURES = {"epsilon": "uvit", "velocity": "uvit", "epsilon_variance": "dit"}


def write_autoencoder(directory: Path, latent_channels: int = 4) -> Path:
    """An autoencoder of f 8 with golden weights and a scaling factor of its own."""
    network = create_autoencoder(EMBEDDED_AUTOENCODER, latent_channels=latent_channels, widths=(8, 8, 16, 16))
    shapes = {key: list(parameter.shape) for key, parameter in network.named_parameters()}
    network.load_state_dict(golden_state(shapes), strict=False)
    network.scaling_factor = SCALING_FACTOR
    save_autoencoder(network, directory, layout="dcae")
    return directory


def write_diffusion(directory: Path, prediction: str = "epsilon", **settings: Any) -> Path:
    """A model of ours for latents (4, 8, 8), images of 64 pixels, with its autoencoder beside it."""
    directory.mkdir(parents=True)
    network = random_denoiser(_ARCHITECTURES[prediction], **settings)
    save_file(network.state_dict(), directory / "model.safetensors")
    autoencoder = write_autoencoder(directory.parent / f"{directory.name}-autoencoder")
    description = describe_denoiser(network.config, prediction, str(autoencoder), SCALING_FACTOR)
    (directory / "dcae.json").write_text(json.dumps({"diffusion": description}))
    return directory


def write_released(
    directory: Path, name: str, weights: dict[str, Tensor], zeros: dict[str, list[int]] | None = None
) -> Path:
    """A directory laid out like the hub's. Tensors named in `zeros` take no room on the disk: the file has a hole."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_name": name}))
    shapes = {key: list(tensor.shape) for key, tensor in weights.items()} | (zeros or {})
    header, offset = {}, 0
    for key, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in weights.values():
            file.write(tensor.contiguous().numpy().tobytes())
        file.truncate(8 + len(text) + offset)
    return directory
