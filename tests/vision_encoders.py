"""Vision encoders on disk, small enough for tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dcae_core.models.clip_vision import ClipVision, ClipVisionConfig
from dcae_core.models.dinov2 import DinoV2, DinoV2Config
from tests.small import randomise

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}


def write_vision_encoder(directory: Path, **changes: object) -> Path:
    """A tiny DINOv2 with random weights, as transformers writes it."""
    directory.mkdir(parents=True)
    network = DinoV2(DinoV2Config(**SMALL))
    randomise(network)
    save_file(network.state_dict(), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "dinov2"} | SMALL | changes))
    return directory


SMALL_CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "projection_dim": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "patch_size": 14, "image_size": 56,
}  # fmt: skip


def write_clip(directory: Path, **changes: object) -> Path:
    """A tiny CLIP with random weights, as transformers writes it; of the half that reads there is one tensor."""
    directory.mkdir(parents=True)
    network = ClipVision(ClipVisionConfig(**SMALL_CLIP))
    randomise(network)
    save_file(network.state_dict() | {"logit_scale": torch.zeros(())}, directory / "model.safetensors")
    vision = SMALL_CLIP | {"hidden_act": "quick_gelu"} | changes
    (directory / "config.json").write_text(
        json.dumps({"model_type": "clip", "projection_dim": 8, "vision_config": vision})
    )
    return directory
