"""`dcae train-diffusion`: from latents to images, through every command on the way."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.pipelines.generate import load_diffusion
from dcae_core.recipes.loading import load_recipe, shipped_recipes
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe

from ..small import small_autoencoder

RECIPE = """
command: train-diffusion
run_dir: {directory}/run
latents: {directory}/latents
autoencoder: {directory}/model
network: {{architecture: uvit, hidden_size: 16, depth: 2, num_heads: 2}}
objective: velocity
steps: 4
batch_size: 4
optimiser: {{learning_rate: 1e-3}}
sampling: {{every: 2, num_images: 3, sampler: euler, num_steps: 2, batch_size: 2}}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("diffusion")
    network = small_autoencoder()
    network.scaling_factor = 0.5
    save_autoencoder(network, directory / "model", layout="dcae")
    for number in range(8):
        folder = directory / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (directory / "recipe.yaml").write_text(RECIPE.format(directory=directory))
    return directory


@pytest.fixture
def latents(dcae, directory):
    options = ("--images", directory / "images", "--model", directory / "model", "--resolution", 16)
    dcae("encode-dataset", *options, "--out", directory / "latents").assert_succeeds()
    return directory / "latents"


def test_from_images_to_samples(dcae, directory, latents):
    forecast = dcae("train-diffusion", directory / "recipe.yaml", "--dry-run")
    forecast.assert_succeeds()
    assert "8 latents; the loader alone" in forecast.stdout
    assert not (directory / "run" / "checkpoints").exists()

    dcae("train-diffusion", directory / "recipe.yaml").assert_succeeds()
    run = directory / "run"
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_2.png", "step_4.png"]
    with Image.open(run / "samples" / "step_4.png") as grid:
        assert grid.size == (32, 32)
        assert len(grid.getcolors(1024)) > 10
    assert len([line for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in json.loads(line)]) >= 1

    pipeline = load_diffusion(run)
    averaged, raw = (load_diffusion(run, weights=kind).denoiser.norm.weight for kind in ("ema", "raw"))
    assert not torch.equal(averaged, raw)
    assert pipeline.scaling_factor == 0.5
    again = load_autoencoder(directory / "model")
    expected = pipeline.generate([0, 1], seed=0, num_steps=2, sampler="euler")
    with torch.inference_mode():
        assert again.decode(expected.latents).shape == (2, 3, 16, 16)
    dcae(
        "sample", "--model", run, "--num", 2, "--steps", 2, "--sampler", "euler", "-o", directory / "out"
    ).assert_succeeds()
    assert (directory / "out" / "grid.png").exists()


def test_bad_input_is_told_before_any_work(dcae, directory, latents):
    recipe = directory / "recipe.yaml"

    def train(*settings):
        return dcae(
            "train-diffusion", recipe, "--set", f"run_dir={directory}/bad", *[s for v in settings for s in ("--set", v)]
        )

    train("network.hiden_size=3").assert_fails(2, "hiden_size", "did you mean 'hidden_size'")
    train("network.num_classes=1000").assert_fails(2, "the latents have 2 classes")
    train("batch_size=9").assert_fails(2, "9 is more than the 8 latents")
    train("resolution=512").assert_fails(2, "images of 16 px")
    train(f"latents={directory}/none").assert_fails(3, "latents: ", "manifest.json is missing")
    several = train(f"latents={directory}/none", "network.depth=3")
    assert several.exit_code == 2
    assert "depth must be even" in several.stderr
    assert "manifest.json is missing" in several.stderr
    other = small_autoencoder(seed=1)
    other.scaling_factor = 0.5
    save_autoencoder(other, directory / "other", layout="dcae")
    run = train(f"autoencoder={directory}/other")
    assert run.exit_code == 3
    assert "were made by model" in run.stderr
    assert "not by other" in run.stderr
    assert not (directory / "bad" / "checkpoints" / "latest").exists()


def test_every_shipped_recipe_is_valid():
    names = [name for name in shipped_recipes() if name.startswith("train_diffusion/")]
    assert len(names) >= 13
    for name in names:
        load_recipe(name, TrainDiffusionRecipe)
