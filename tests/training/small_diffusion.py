"""Small trainings of diffusion models for tests: latents of 8x4x4 in four classes, tiny networks."""

import json
from pathlib import Path

import torch

from dcae_core.data.latents import DatasetPlan, LatentDatasetWriter
from dcae_core.data.latents.manifest import EncoderRecord, TransformRecord
from dcae_core.recipes.loading import read_recipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import check_diffusion_recipe
from dcae_core.training.run import RunOptions
from dcae_core.training.train_diffusion import train_diffusion

SHAPE = (8, 4, 4)
CPU = torch.device("cpu")


def write_latents(
    directory: Path,
    count: int = 20,
    shape: tuple[int, int, int] = SHAPE,
    *,
    num_classes: int = 4,
    num_distinct: int | None = None,
    encoder: EncoderRecord | None = None,
    scale: torch.Tensor | float = 1.0,
    shift: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Normal latents of deviation `scale` and mean `shift`, repeated after `num_distinct`; returns them, unscaled."""
    distinct = torch.randn(num_distinct or count, *shape, generator=torch.Generator().manual_seed(1)) * scale + shift
    latents = distinct[torch.arange(count) % len(distinct)]
    shard_size = -(-count // 3)
    plan = DatasetPlan(
        encoder=encoder or EncoderRecord(name="dc-ae-f32c32-tiny-1.0", scaling_factor=0.5),
        transform=TransformRecord(resolution=16),
        encoding={},
        dtype="float32",
        latent_shape=shape,
        classes=[f"class {number}" for number in range(num_classes)],
        num_shards=3,
    )
    writer = LatentDatasetWriter(directory, plan)
    writer.begin()
    for number in range(3):
        items = range(number * shard_size, min((number + 1) * shard_size, count))
        labels = torch.tensor([item % max(1, num_classes) for item in items])
        writer.write_shard(number, latents[items.start : items.stop], labels, [str(item) for item in items], [])
    writer.finish()
    return latents


def recipe_for(directory: Path, **changes) -> TrainDiffusionRecipe:
    """A checked recipe on the latents in `directory / "latents"`; a dotted key in `changes` sets one setting."""
    document = {
        "command": "train-diffusion",
        "run_dir": str(directory / "run"),
        "latents": str(directory / "latents"),
        "network": {"architecture": "uvit", "hidden_size": 16, "depth": 2, "num_heads": 2},
        "objective": "velocity",
        "steps": 4,
        "batch_size": 6,
        "optimiser": {"learning_rate": 1e-3, "warmup_steps": 2},
        "ema": {"decay": 0.9, "warmup_steps": 2},
        "sampling": None,
        "checkpoints": {"every": 1000},
        "logging": {"every": 1},
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return read_recipe(json.dumps(document), "test", TrainDiffusionRecipe, overrides, check_diffusion_recipe)


def train(recipe: TrainDiffusionRecipe) -> Path:
    """Go through a training in this process."""
    return train_diffusion(recipe, RunOptions(CPU))
