"""Frozen encoders of images, which trainings and metrics look through: found on this disk or on the hub, and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dcae_core.checkpoints import hub
from dcae_core.checkpoints.hub import CONFIG_NAME, WEIGHTS_STEM
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.clip_vision import ClipVision, ClipVisionConfig
from dcae_core.models.dinov2 import DinoV2, DinoV2Config
from dcae_core.weights import load_strictly, read_json, read_weights

_WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"
_PICKLED_WEIGHTS_NAME = "pytorch_model.bin"

Network = TypeVar("Network", bound=nn.Module)


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
    directory = _find(model, "facebook/dinov2-small", [_WEIGHTS_NAME])
    return _load(
        directory, "DINOv2", lambda values: DinoV2(DinoV2Config.from_dict(values)), lambda state: state, device
    )


def load_clip_vision(model: str, device: torch.device | str = "cpu") -> ClipVision:
    """The half of a CLIP that sees, strictly loaded, frozen, in float32; arguments and errors as above.

    The hub's files hold the half that reads as well: 1.7 GB for ViT-L/14, of which 1.2 GB stay in memory. A directory
    may hold `pytorch_model.bin` instead, which is read as plain tensors.
    """
    directory = _find(model, "openai/clip-vit-large-patch14-336", [_WEIGHTS_NAME, _PICKLED_WEIGHTS_NAME])
    return _load(directory, "CLIP", lambda values: ClipVision(ClipVisionConfig.from_dict(values)), _what_sees, device)


def _what_sees(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the half that reads, and without what some versions of transformers kept beside the weights."""
    reading = ("text_model.", "text_projection.", "logit_scale")
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(reading) and not name.endswith(".position_ids")
    }


def _find(model: str, example: str, weights_names: list[str]) -> Path:
    """The directory of a network's files; of weights, the first that the hub has."""
    directory = Path(model)
    if directory.is_dir():
        return directory
    if not hub.is_hub_id(model):
        raise UsageError(f"{model} is neither a directory nor a hub id; {example} is one")
    hub.fetch_files(model, [CONFIG_NAME])
    *others, last = weights_names
    for name in others:
        try:
            return hub.fetch_files(model, [CONFIG_NAME, name])
        except UsageError:  # there is no such file
            continue
    return hub.fetch_files(model, [CONFIG_NAME, last])


def _load(
    directory: Path,
    kind: str,
    build: Callable[[dict[str, Any]], Network],
    choose: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    device: torch.device | str,
) -> Network:
    try:
        with torch.device("meta"):
            network = build(read_json(directory / CONFIG_NAME))
    except UsageError as error:
        raise CheckpointError(f"{directory / CONFIG_NAME} describes no {kind} that is known here: {error}") from error
    safe, pickled = directory / _WEIGHTS_NAME, directory / _PICKLED_WEIGHTS_NAME
    load_strictly(
        network, choose(read_weights(pickled if pickled.is_file() and not safe.is_file() else safe)), directory
    )
    return network.requires_grad_(False).to(device)
