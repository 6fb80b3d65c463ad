"""Frozen encoders of images that trainings look through: found on this disk or on the hub, and loaded."""

from pathlib import Path

import torch

from dcae_core.checkpoints import hub
from dcae_core.checkpoints.hub import CONFIG_NAME, WEIGHTS_STEM
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.dinov2 import DinoV2, DinoV2Config
from dcae_core.weights import load_strictly, read_json, read_weights

_WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"


def load_vision_encoder(model: str, device: torch.device | str = "cpu") -> DinoV2:
    """DINOv2 of any size but the giant one, strictly loaded, frozen, in float32.

    Args:
        model: a hub id such as "facebook/dinov2-small", or a directory with `config.json` and `model.safetensors` as
            transformers writes them.
        device: where it goes.

    Raises:
        UsageError: nothing is called that.
        CheckpointError: the files are damaged, or of another kind of network.
        DownloadError: the files are not cached and cannot be downloaded.
    """
    directory = Path(model)
    if not directory.is_dir():
        if not hub.is_hub_id(model):
            raise UsageError(f"{model} is neither a directory nor a hub id; facebook/dinov2-small is one")
        directory = hub.fetch_files(model, [CONFIG_NAME, _WEIGHTS_NAME])
    try:
        config = DinoV2Config.from_dict(read_json(directory / CONFIG_NAME))
    except UsageError as error:
        raise CheckpointError(f"{directory / CONFIG_NAME} describes no DINOv2 that is known here: {error}") from error
    with torch.device("meta"):
        network = DinoV2(config)
    load_strictly(network, read_weights(directory / _WEIGHTS_NAME), directory)
    return network.requires_grad_(False).to(device)
