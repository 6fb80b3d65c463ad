"""Training runs of a few steps on a few thousand parameters and a dozen small images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from dcae_core.recipes.loading import read_recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.checks import check_autoencoder_recipe
from dcae_core.training.run import RunOptions
from dcae_core.training.train_ae import train_autoencoder

NETWORK = {
    "latent_channels": 4,
    "encoder_widths": [8, 8, 16],
    "encoder_depths": [0, 1, 1],
    "encoder_blocks": ["res", "res", "res"],
    "encoder_attention_scales": [[], [], []],
    "decoder_widths": [8, 8, 16],
    "decoder_depths": [0, 1, 1],
    "decoder_blocks": ["res", "res", "res"],
    "decoder_attention_scales": [[], [], []],
    "decoder_norms": ["batch_norm", "batch_norm", "rms_norm"],
    "decoder_acts": ["relu", "relu", "silu"],
}
OPTIMISER = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 1}
GAN = {
    "weight": 0.1,
    "adaptive": False,
    "optimiser": {"learning_rate": 1e-3, "betas": [0.5, 0.9]},
    "discriminator": {"width": 4, "num_layers": 1, "norm": "group"},
}


def write_images(folder: Path, count: int = 10, size: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size + index, size), Image.Resampling.BICUBIC).save(folder / f"{index:02}.png")
    return folder


def phase(name: str = "full", **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": name,
        "resolution": 16,
        "batch_size": 4,
        "steps": 4,
        "losses": {"l1": 1.0},
        "optimiser": OPTIMISER,
        "ema": {"decay": 0.9, "warmup_steps": 2},
    }
    return base | changes


def recipe_for(folder: Path, *phases: dict[str, Any], **changes: Any) -> TrainAutoencoderRecipe:
    """A recipe whose images and run directory lie in `folder`."""
    if not (folder / "images").is_dir():
        write_images(folder / "images")
    document: dict[str, Any] = {
        "command": "train-ae",
        "run_dir": str(folder / "run"),
        "seed": 3,
        "network": {"model": "custom", "config": NETWORK},
        "data": {"sources": [{"path": str(folder / "images")}], "num_workers": 0},
        "phases": list(phases) or [phase()],
        "logging": {"every": 1},
        "latent_statistics_images": 4,
    }
    text = json.dumps(document | changes)
    return read_recipe(text, "test recipe", TrainAutoencoderRecipe, None, check_autoencoder_recipe)


def train(recipe: TrainAutoencoderRecipe, **options: Any) -> Path:
    return train_autoencoder(recipe, RunOptions(torch.device("cpu"), **options))


def checkpoint_contents(checkpoint: Path) -> dict[str, Any]:
    """Everything in a checkpoint as one flat dictionary."""
    contents: dict[str, Any] = {"state": json.loads((checkpoint / "state.json").read_text())}
    for path in checkpoint.glob("*.safetensors"):
        contents |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    for path in checkpoint.glob("*.pt"):
        contents[path.name] = torch.load(path, weights_only=True)
    return contents


def losses_of(run: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without what the clock decides."""
    timed = {"images_per_second", "loader_images_per_second", "loader_wait", "seconds_left"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where
