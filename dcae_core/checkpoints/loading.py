"""Autoencoders from any place and layout, ready to use."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dcae_core.checkpoints.diffusers_layout import from_diffusers
from dcae_core.checkpoints.kl_autoencoder import find_kl_autoencoder, read_kl_autoencoder
from dcae_core.checkpoints.locating import DIFFUSERS, ORIGINAL, AutoencoderFiles, locate_autoencoder
from dcae_core.checkpoints.original_layout import from_original, to_original
from dcae_core.checkpoints.reading import read_weights
from dcae_core.checkpoints.strict import load_strictly
from dcae_core.devices import select_device
from dcae_core.errors import CheckpointError
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.models.autoencoder_config import AutoencoderConfig
from dcae_core.models.preparation import prepare_for_inference
from dcae_core.zoo import AUTOENCODERS


def load_autoencoder(
    model: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    prepare: bool = True,
    revision: str | None = None,
) -> Autoencoder:
    """Load an autoencoder, strictly.

    Costs one copy of the weights in memory (f32c32: 1.3 GB in float32).

    Args:
        model: a zoo name, a hub id, a directory in any known layout, or a weights file; None is the embedded model.
            A hub id or directory of diffusers' AutoencoderKL (SD's and FLUX's VAE) gives a `KLAutoencoder`.
        device: where it goes.
        dtype: of its weights; float32 if None, whatever the file holds.
        prepare: ready for fast inference, frozen; False gives the plain network, for training and export.
        revision: of a hub repository: branch, tag or commit.

    Returns:
        The network in evaluation mode, with `.scaling_factor`.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
        ResourceError: this machine has no such device.
    """
    device = select_device(str(device))
    network: Autoencoder
    if (baseline := find_kl_autoencoder(model, revision)) is not None:
        network = cast(Autoencoder, read_kl_autoencoder(baseline, dtype).to(device))  # it has the same methods
    else:
        network = read_autoencoder(locate_autoencoder(model, revision), dtype).to(device)
    return prepare_for_inference(network) if prepare else network


def read_autoencoder(files: AutoencoderFiles, dtype: torch.dtype | None = None) -> Autoencoder:
    """The plain network that located files hold, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights are damaged or do not fit.
    """
    state: dict[str, Tensor] = {}
    for path in files.weights:
        state |= read_weights(path, files.sha256.get(path))
    config = files.config or _recognise(state, files.where)
    if files.layout == ORIGINAL:
        state = from_original(config, state)
    elif files.layout == DIFFUSERS:
        state = from_diffusers(config, state)
    network = build_on_meta(config)
    load_strictly(network, state, files.where, dtype)
    network.scaling_factor = files.scaling_factor
    return network.eval()


def _recognise(state: dict[str, Tensor], where: Path) -> AutoencoderConfig:
    """The released configuration whose keys and shapes a lone weights file has."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    for entry in AUTOENCODERS.values():
        expected = to_original(entry.config, build_on_meta(entry.config).state_dict())
        if shapes == {key: tensor.shape for key, tensor in expected.items()}:
            return entry.config
    raise CheckpointError(
        f"{where}: its tensors are those of no released autoencoder; put it beside a config.json that says what it is"
    )
