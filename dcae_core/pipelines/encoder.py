"""An autoencoder together with what latents record about it."""

from pathlib import Path

import torch

from dcae_core.checkpoints import load_autoencoder
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.weights import fingerprint
from dcae_core.zoo import EMBEDDED_AUTOENCODER


def encoder_name(model: str | None) -> str:
    """What people call the autoencoder that `load_autoencoder(model)` gives: the last part of its name or path."""
    return (
        EMBEDDED_AUTOENCODER
        if model is None
        else Path(model).resolve().name
        if Path(model).is_dir()
        else Path(model).name
    )


def load_encoder(
    model: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    revision: str | None = None,
    prepare: bool = True,
) -> tuple[Autoencoder, EncoderRecord]:
    """Load an autoencoder for inference, and identify it.

    The identity is a fingerprint of its float32 weights, so it does not depend on `dtype`, layout or place; the name
    is for people. Costs one pass over the weights beyond loading them. Without `prepare` it stays the plain network.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the weights are damaged or do not fit.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    network = load_autoencoder(model, prepare=False, revision=revision)
    record = EncoderRecord(
        name=encoder_name(model),
        fingerprint=fingerprint(network),
        scaling_factor=network.scaling_factor,
    )
    network = network.to(device, dtype)
    return prepare_for_inference(network) if prepare else network, record
