"""A run of `recipes/train_diffusion/emoji.yaml` made short: 50 steps of a smaller network on coloured discs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from dcae_core.data.sources import find_images
from dcae_core.pipelines.encode import encode_dataset, load_encoder
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
from dcae_core.recipes.loading import load_recipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.checks import check_diffusion_recipe
from dcae_core.training.run import RunOptions
from dcae_core.training.train_diffusion import train_diffusion

STEPS, SIDE = 50, 128
_CPU = torch.device("cpu")


def draw(directory: Path, classes: Sequence[str], num: int = 64) -> None:
    """`num` discs in a folder for each class: classes differ in colour, the discs of one in width."""
    for number in range(num):
        index, place = number // len(classes), number % len(classes)
        image = Image.new("RGB", (SIDE, SIDE), "white")
        margin = 8 + 40 * index * len(classes) // num
        colour = f"hsl({360 * place // len(classes)}, 90%, 50%)"
        ImageDraw.Draw(image).ellipse((margin, 8, SIDE - margin, SIDE - 8), colour)
        (directory / classes[place]).mkdir(parents=True, exist_ok=True)
        image.save(directory / classes[place] / f"{index}.png")


def train_shortly(directory: Path, classes: Sequence[str]) -> Path:
    """Images, latents as `make emoji` makes them, and the training: the run directory."""
    images, latents = directory / "images", directory / "latents"
    draw(images, classes)
    network, encoder = load_encoder(None, device=_CPU, dtype=torch.float32)
    settings = EncodeDatasetRecipe(resolution=SIDE)
    encode_dataset(find_images([str(images)]), network, encoder, latents, settings, device=_CPU)
    overrides = [f"latents={latents}", f"run_dir={directory / 'run'}", f"steps={STEPS}", "optimiser.warmup_steps=5"]
    overrides += ["network.hidden_size=128", "network.depth=4", "logging.every=5", "sampling.num_steps=2"]
    recipe = load_recipe("emoji", TrainDiffusionRecipe, overrides, check_diffusion_recipe)
    return train_diffusion(recipe, RunOptions(_CPU))
