"""A small model in the place of the embedded diffusion model, so that tests do without its weights."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dcae_core import zoo
from dcae_core.checkpoints.denoiser_files import describe_denoiser
from tests.denoisers import random_denoiser

SAMPLING = zoo.DENOISERS[zoo.EMBEDDED_DENOISER].sampling
CLASSES = [*(SAMPLING.classes or ()), "face-tongue"]


def put_in_place(directory: Path, monkeypatch: pytest.MonkeyPatch, model: Path | None = None) -> Path:
    """Make `directory` that of the embedded models: the autoencoder, and a diffusion model unless `model` is none.

    Args:
        directory: new.
        monkeypatch: takes it away again.
        model: a diffusion model to move there.
    """
    directory.mkdir()
    shutil.copytree(zoo.embedded_directory(zoo.EMBEDDED_AUTOENCODER), directory / zoo.EMBEDDED_AUTOENCODER)
    if model is not None:
        model.rename(directory / zoo.EMBEDDED_DENOISER)
    monkeypatch.setattr(zoo, "EMBEDDED_MODELS", directory)
    return directory / zoo.EMBEDDED_DENOISER


def write_stand_in(directory: Path, classes: Sequence[str] = CLASSES) -> Path:
    """A velocity model with random weights for latents (32, 2, 2) of the embedded autoencoder: images of 64 pixels."""
    directory.mkdir()
    network = random_denoiser("uvit", in_channels=32, input_size=2, num_classes=len(classes))
    save_file(network.state_dict(), directory / "model.safetensors")
    description = describe_denoiser(network.config, "velocity", None, 1.0, classes)
    (directory / "dcae.json").write_text(json.dumps({"diffusion": description}))
    return directory
