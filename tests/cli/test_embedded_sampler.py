"""`dcae sample` and `load_diffusion` without a model: the embedded one, where this copy of the package has it."""

import json
import os
import time

import pytest
import torch
from PIL import Image

from dcae_core import load_diffusion, sample
from dcae_core.checkpoints.denoisers import locate_diffusion, read_network
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.configs import denoiser_config
from dcae_core.recipes.loading import load_recipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.zoo import DENOISERS, EMBEDDED_DENOISER, embedded_directory
from tests.embedded_stand_in import CLASSES, SAMPLING, put_in_place, write_stand_in

needs_weights = pytest.mark.skipif(
    not embedded_directory(EMBEDDED_DENOISER).is_dir(), reason=f"{EMBEDDED_DENOISER} is not in this copy of the package"
)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    return put_in_place(tmp_path / "embedded", monkeypatch, write_stand_in(tmp_path / "model"))


def test_without_a_model_it_draws_its_own_classes_in_its_own_way(dcae, stand_in, tmp_path) -> None:
    run = dcae("sample", "-o", tmp_path / "out")
    run.assert_succeeds()
    assert run.stdout.splitlines()[-1].endswith("all in one: grid.png")
    record = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert [record["class_names"][str(number)] for number in record["classes"]] == list(SAMPLING.classes)
    assert (record["model"], record["autoencoder"]) == (EMBEDDED_DENOISER, "dc-ae-f32c32-tiny-1.0")
    assert (record["guidance_scale"], record["sampler"], record["num_steps"]) == (
        SAMPLING.guidance_scale,
        SAMPLING.sampler,
        SAMPLING.num_steps,
    )
    for options in ((), ("--model", EMBEDDED_DENOISER)):  # by its name it is the same run
        again = dcae("sample", *options, "-o", tmp_path / "out", "--json")
        assert (json.loads(again.stdout)["made"], json.loads(again.stdout)["kept"]) == (0, 16)


def test_the_same_images_from_python(dcae, stand_in, tmp_path) -> None:
    dcae("sample", "--classes", "flag,face-smiling", "-o", tmp_path / "out").assert_succeeds()
    pipeline = load_diffusion()
    numbers = [CLASSES.index("flag"), CLASSES.index("face-smiling")]
    for images in (sample(classes=["flag", "face-smiling"]), pipeline.generate(numbers).images):
        for index, image in enumerate(images):
            with Image.open(tmp_path / "out" / f"{index:04d}_c{numbers[index]}.png") as written:
                assert written.tobytes() == image.tobytes()
    assert len(sample(pipeline, num_steps=1)) == len(SAMPLING.classes)
    assert torch.equal(load_diffusion(EMBEDDED_DENOISER).generate([1]).latents, pipeline.generate([1]).latents)


def test_what_is_asked_for_takes_the_place_of_its_defaults(dcae, stand_in, tmp_path) -> None:
    options = ("--num", 3, "--cfg", 1, "--sampler", "dopri5")  # which chooses its own steps
    dcae("sample", *options, "-o", tmp_path / "out").assert_succeeds()
    record = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert (record["guidance_scale"], record["sampler"], record["num_steps"]) == (1.0, "dopri5", None)
    assert len(record["classes"]) == 3
    dcae("sample", "--steps", 2, "--num", 1, "-o", tmp_path / "short").assert_succeeds()
    record = json.loads((tmp_path / "short" / "sample.json").read_text())
    assert (record["sampler"], record["num_steps"]) == (SAMPLING.sampler, 2)


def test_a_mistyped_class_is_answered_with_the_nearest(dcae, stand_in, tmp_path) -> None:
    for typed, nearest in (
        ("face-smilling", "face-smiling (0)"),
        ("tongue", "face-tongue"),
        ("mamal", "animal-mammal"),
    ):
        dcae("sample", "--classes", typed, "-o", tmp_path / "out").assert_fails(2, f"'{typed}'", "nearest", nearest)
    dcae("sample", "--classes", "xyz").assert_fails(2, "classes are, for example: face-smiling (0)", "face-tongue (16)")


def test_it_is_listed_where_it_is(dcae, stand_in) -> None:
    [row] = json.loads(dcae("models", "list", EMBEDDED_DENOISER, "--json").stdout)
    assert (row["on_disk"], row["latent_shape"], row["licence"]) == ("in the package", [32, 4, 4], "Apache-2.0")
    assert json.loads(dcae("info", "--json").stdout)["embedded_diffusion_model"]["name"] == EMBEDDED_DENOISER


def test_a_copy_without_its_weights_says_what_to_give(dcae, tmp_path, monkeypatch) -> None:
    put_in_place(tmp_path / "embedded", monkeypatch)
    dcae("sample", "-o", tmp_path / "out").assert_fails(2, "--model", "train-diffusion", "example: dcae sample")
    dcae("sample", "--model", EMBEDDED_DENOISER).assert_fails(3, EMBEDDED_DENOISER, "make emoji")
    [row] = json.loads(dcae("models", "list", EMBEDDED_DENOISER, "--json").stdout)
    assert row["on_disk"] == "no"
    assert json.loads(dcae("info", "--json").stdout)["embedded_diffusion_model"] is None
    with pytest.raises(UsageError, match="comes with this package"):
        load_diffusion()
    with pytest.raises(CheckpointError, match="make emoji"):
        load_diffusion(EMBEDDED_DENOISER)


def test_the_zoo_has_the_network_that_the_recipe_trains() -> None:
    settings = load_recipe("emoji", TrainDiffusionRecipe).network.model_dump(exclude_none=True)
    config = denoiser_config(settings | {"input_size": 4, "in_channels": 32, "num_classes": 97})
    assert config == DENOISERS[EMBEDDED_DENOISER].config


@needs_weights
def test_the_packaged_model_is_the_one_in_the_zoo() -> None:
    files = locate_diffusion()
    entry = DENOISERS[EMBEDDED_DENOISER]
    assert (files.config, files.prediction, files.autoencoder) == (entry.config, entry.prediction, None)
    assert set(entry.sampling.classes) <= set(files.class_names)
    assert len(set(entry.sampling.classes)) == 16
    read_network(files)
    assert len(files.sha256) == len(files.weights)


@needs_weights
def test_its_sixteen_images_take_seconds(dcae, tmp_path) -> None:
    start = time.process_time()
    dcae("sample", "-o", tmp_path / "out").assert_succeeds()
    assert time.process_time() - start < 15 * (os.cpu_count() or 1)
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.size == (4 * 128, 4 * (128 + 14))
