"""Parts of a batch, processes, shards: the same step."""

from pathlib import Path

import pytest
import torch

from dcae_core.checkpoints import load_autoencoder
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.run_directory import RunDirectory
from tests.processes import run_in_group
from tests.training.small_runs import GAN, NETWORK, checkpoint_contents, losses_of, phase, recipe_for, train
from tests.vision_encoders import write_vision_encoder

# Float32 sums in another order: about 1e-7 a step, and Adam's first steps divide by gradients of nearly 0.
TOLERANCE = 2e-4
WITHOUT_BATCH_NORM = {"model": "custom", "config": NETWORK | {"decoder_norms": ["rms_norm"] * 3}}


def train_in_two_processes(*recipes: TrainAutoencoderRecipe) -> None:
    """One after the other in the same two processes, since starting those costs most."""

    def train_all() -> None:
        for recipe in recipes:
            train(recipe)

    run_in_group(2, train_all)


def assert_close(a: Path, b: Path) -> None:
    first, second = (load_autoencoder(run / "autoencoder", prepare=False).state_dict() for run in (a, b))
    for key, value in first.items():
        if value.is_floating_point():
            assert (value - second[key]).abs().max() < TOLERANCE, key


def test_accumulated_parts_equal_one_batch_also_with_a_short_last_part(tmp_path: Path) -> None:
    for name, accumulation in (("one", 1), ("three", 3)):
        gan = {"l1": 1.0, "adversarial": GAN}
        steps = [
            phase(batch_size=7, accumulation=accumulation),
            phase("local_refinement", batch_size=7, accumulation=accumulation, losses=gan),
        ]
        train(recipe_for(tmp_path, *steps, run_dir=str(tmp_path / name), network=WITHOUT_BATCH_NORM))
    assert_close(tmp_path / "one", tmp_path / "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and of two: with copies, with shards, and one that two begin and one finishes."""
    folder = tmp_path_factory.mktemp("runs")
    gan = {"l1": 1.0, "adversarial": GAN | {"discriminator": {"width": 4, "num_layers": 1, "norm": "batch"}}}
    clipped = {"learning_rate": 1e-3, "clip_gradient_norm": 0.5}

    def recipe(run: str, sharding: str = "ddp", first_steps: int = 3, later: bool = True):
        phases = [phase(batch_size=8, accumulation=2, latent_channels=[2, 4], steps=first_steps)]
        if later:
            phases += [
                phase("latent_adaptation", batch_size=4, optimiser=clipped, steps=2),
                phase("local_refinement", batch_size=4, losses=gan, steps=2),
            ]
        return recipe_for(folder, *phases, run_dir=str(folder / run), execution={"sharding": sharding})

    train_in_two_processes(recipe("copies"), recipe("shards", "fsdp"), recipe("moved", "fsdp", 2, later=False))
    train(recipe("one"))
    train(recipe("moved"))
    return folder


@pytest.mark.parametrize("run", ["copies", "shards", "moved"])
def test_two_processes_equal_one(run: str, folder: Path) -> None:
    assert_close(folder / "one", folder / run)
    for a, b in zip(losses_of(folder / "one"), losses_of(folder / run), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    contents = [checkpoint_contents(RunDirectory(folder / name).latest()) for name in ("one", run)]
    assert contents[0].keys() == contents[1].keys()
    for name, value in contents[0].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert (value - contents[1][name]).abs().max() < TOLERANCE, name


def test_shards_equal_copies(folder: Path) -> None:
    assert_close(folder / "copies", folder / "shards")


def test_half_precision_and_terms_of_the_latent_in_two_processes(tmp_path: Path) -> None:
    """Batch norms add up in float32; all processes turn latents alike, and train one linear map."""
    write_vision_encoder(tmp_path / "dino")
    alignment = {"model": str(tmp_path / "dino"), "weight": 0.5, "adaptive": False}
    full = phase(steps=2, losses={"l1": 1.0, "alignment": alignment}, equivariance={"probability": 1.0})

    def recipe(run: str, precision: str) -> TrainAutoencoderRecipe:
        return recipe_for(tmp_path, full, run_dir=str(tmp_path / run), execution={"precision": precision})

    train_in_two_processes(recipe("two", "fp32"), recipe("two-half", "bf16"))
    train(recipe("one", "fp32"))
    assert_close(tmp_path / "one", tmp_path / "two")
    for a, b, half in zip(*(losses_of(tmp_path / run) for run in ("one", "two", "two-half")), strict=True):
        assert a["alignment_cosine"] == pytest.approx(b["alignment_cosine"], abs=1e-4)
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["loss"] == pytest.approx(half["loss"], abs=0.02)
