"""`dcae convert`: layouts there and back, and what it refuses."""

import json

import pytest
import torch

from dcae_core import load_diffusion
from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.errors import CheckpointError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.weights import fingerprint
from tests.diffusion_models import write_diffusion
from tests.small import SMALL_CONFIGS, small_autoencoder


@pytest.fixture
def saved(tmp_path):
    network = small_autoencoder()
    network.scaling_factor = 0.25
    save_autoencoder(network, tmp_path / "own", layout="dcae")
    return tmp_path / "own", fingerprint(network)


def test_weights_survive_the_way_to_diffusers_and_back(dcae, saved, tmp_path) -> None:
    source, digest = saved
    run = dcae("convert", source, "--to", "diffusers", "-o", tmp_path / "diffusers", "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["source_layout"] == "dcae"
    assert (tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors").is_file()
    dcae("convert", tmp_path / "diffusers", "--to", "dcae", "-o", tmp_path / "back").assert_succeeds()
    back = load_autoencoder(tmp_path / "back", prepare=False)
    assert fingerprint(back) == digest
    assert back.scaling_factor == 0.25


@pytest.mark.parametrize(("kind", "noted"), [("1.0", False), ("sana", False), ("lite", True), ("1.5", True)])
def test_what_older_versions_of_diffusers_open_wrongly_is_noted(dcae, tmp_path, kind, noted) -> None:
    save_autoencoder(Autoencoder(SMALL_CONFIGS[kind]), tmp_path / "own", layout="dcae")
    run = dcae("convert", tmp_path / "own", "--to", "diffusers", "-o", tmp_path / "out")
    run.assert_succeeds()
    assert ("diffusers below 0.35" in run.stderr) == noted
    run = dcae("convert", tmp_path / "own", "--to", "diffusers", "-o", tmp_path / "json", "--json")
    assert ("note" in json.loads(run.stdout)) == noted
    assert "0.35" not in dcae("convert", tmp_path / "own", "--to", "dcae", "-o", tmp_path / "again").stderr


def test_half_precision_halves_the_files(dcae, saved, tmp_path) -> None:
    source, _ = saved
    dcae("convert", source, "--to", "dcae", "--dtype", "fp16", "-o", tmp_path / "half").assert_succeeds()
    sizes = [sum(file.stat().st_size for file in d.glob("*.safetensors")) for d in (source, tmp_path / "half")]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.05)


def test_what_diffusers_cannot_express_is_refused_and_leaves_nothing(dcae, tmp_path) -> None:
    save_autoencoder(small_autoencoder(head_norm=False), tmp_path / "own", layout="dcae")
    run = dcae("convert", tmp_path / "own", "--to", "diffusers", "-o", tmp_path / "out")
    run.assert_fails(2, "AutoencoderDC", "--to dcae")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_the_original_layout_takes_released_networks_only(dcae, saved, tmp_path) -> None:
    source, _ = saved
    dcae("convert", source, "--to", "original", "-o", tmp_path / "out").assert_fails(2, "original layout")


def test_a_directory_with_something_in_it_is_never_overwritten(dcae, saved, tmp_path) -> None:
    source, _ = saved
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    dcae("convert", source, "--to", "dcae", "-o", tmp_path / "home").assert_fails(2, "home", "-o")
    assert (tmp_path / "home" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "onnx"), ("onnx", "original, diffusers, dcae")),
        (("--to", "dcae", "--dtype", "int8"), ("int8", "fp16")),
        (("--to", "dcae", "--name", "dc-ae-f32c32-in-1"), ("did you mean", "dc-ae-f32c32-in-1.0")),
    ],
)
def test_wrong_settings_name_the_right_ones(dcae, saved, tmp_path, arguments, words) -> None:
    dcae("convert", saved[0], *arguments, "-o", tmp_path / "out").assert_fails(2, *words)


def test_a_directory_without_a_model_is_data_at_fault(dcae, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    dcae("convert", tmp_path / "empty", "--to", "dcae", "-o", tmp_path / "out").assert_fails(3, "empty")


def test_the_original_layout_takes_no_name_that_the_published_code_does_not_know(dcae, tmp_path) -> None:
    run = dcae("convert", "dc-ae-f32c32-tiny-1.0", "--to", "original", "-o", tmp_path / "out")
    run.assert_fails(2, "published code", "dc-ae-f32c32-tiny-1.0", "dcae layout")
    assert not (tmp_path / "out").exists()


def test_a_diffusion_model_in_half_precision_and_small_files(dcae, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dcae_core.checkpoints.saving._MAX_FILE_BYTES", 30_000)
    model, half = write_diffusion(tmp_path / "model", "velocity"), tmp_path / "half"
    run = dcae("convert", model, "--to", "dcae", "--dtype", "fp16", "-o", half, "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["output"] == str(half)
    weights = sorted(half.glob("*.safetensors"))
    assert [path.name for path in weights][:2] == ["weights-1.safetensors", "weights-2.safetensors"]
    assert max(path.stat().st_size for path in weights) < 40_000
    size = sum(path.stat().st_size for path in weights)
    assert size == pytest.approx((model / "model.safetensors").stat().st_size / 2, rel=0.1)
    options = {"num_steps": 2, "sampler": "heun"}
    before, after = (load_diffusion(place).generate([1, 2], **options).latents for place in (model, half))
    torch.testing.assert_close(after, before, atol=0.02, rtol=0.02)
    weights[0].write_bytes(weights[0].read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_diffusion(half)
    weights[0].unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights-1\.safetensors"):
        load_diffusion(half)


def test_a_diffusion_model_goes_into_our_layout_alone(dcae, tmp_path) -> None:
    model = write_diffusion(tmp_path / "model")
    dcae("convert", model, "--to", "diffusers", "-o", tmp_path / "out").assert_fails(2, "--to dcae")
    named = ("--to", "dcae", "--name", "dc-ae-f32c32-in-1.0")
    dcae("convert", model, *named, "-o", tmp_path / "out").assert_fails(2, "--name is for autoencoders")
    assert not (tmp_path / "out").exists()
