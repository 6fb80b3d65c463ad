"""`dcae push` to a hub on loopback: what arrives, what its card says, and what stays here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from dcae_core import load_autoencoder, load_diffusion
from dcae_core.checkpoints import save_autoencoder
from dcae_core.checkpoints.autoencoders import find_without_asking
from dcae_core.checkpoints.denoisers import locate_diffusion, read_network
from dcae_core.weights import fingerprint
from tests.diffusion_models import write_diffusion
from tests.loopback_hub import Hub, loopback_hub
from tests.small import small_autoencoder
from tests.training.small_diffusion import recipe_for as diffusion_recipe
from tests.training.small_diffusion import train as train_diffusion
from tests.training.small_diffusion import write_latents
from tests.training.small_runs import phase, recipe_for, train

NAME = "someone/my-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with loopback_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two steps, with a validation."""
    folder = tmp_path_factory.mktemp("training")
    validation = {"path": str(folder / "images"), "resolution": 16, "num_images": 2, "every": 2}
    recipe = recipe_for(folder, phase(steps=2), validation=validation)
    train(recipe)
    return folder / "run"


def card_of(hub: Hub) -> tuple[dict, str]:
    text = hub.files[NAME]["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_run_of_an_autoencoder_arrives_and_opens_as_in_diffusers(dcae, hub: Hub, run: Path) -> None:
    from diffusers import AutoencoderDC

    pushed = dcae("push", run, NAME, "--license", "cc-by-4.0", "--json")
    pushed.assert_succeeds()
    assert json.loads(pushed.stdout)["address"] == f"{hub.address}/{NAME}"
    assert sorted(hub.files[NAME]) == [
        "README.md", "config.json", "dcae.json", "diffusion_pytorch_model.safetensors", "samples.png",
    ]  # fmt: skip
    assert json.loads(pushed.stdout)["files"] == {path: len(content) for path, content in hub.files[NAME].items()}
    here = load_autoencoder(run, prepare=False)
    assert fingerprint(load_autoencoder(NAME, prepare=False)) == fingerprint(here)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        peer = AutoencoderDC.from_pretrained(NAME)
        torch.testing.assert_close(peer(x).sample, here(x), rtol=1e-4, atol=1e-4)


def test_the_card_says_how_it_was_made_and_how_it_is_loaded(dcae, hub: Hub, run: Path) -> None:
    dcae("push", run, NAME, "--license", "cc-by-4.0").assert_succeeds()
    front, body = card_of(hub)
    assert front == {"license": "cc-by-4.0", "library_name": "dcae", "tags": ["autoencoder", "dc-ae"]}
    for words in (
        f'load_autoencoder("{NAME}")', f'AutoencoderDC.from_pretrained("{NAME}")', f"--model {NAME} -o out",
        "(samples.png)", "2 steps on 10 images", "| psnr | ", "latents of 4 channels with sides 4 times smaller",
        "learning_rate: 0.001", "{path: images, weight: 1.0}",
    ):  # fmt: skip
        assert words in body
    (record,) = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").open())
        if "validation.psnr" in line and line["step"] == 2
    ]
    assert f"| psnr | {record['validation.psnr']:.4g} |" in body
    everything = b"".join(hub.files[NAME].values())
    assert str(run.parent).encode() not in everything  # no place on this machine


def test_an_autoencoder_that_diffusers_cannot_express_opens_here(dcae, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    assert find_without_asking(NAME) is None
    network = small_autoencoder(residual_shortcuts=False)
    network.scaling_factor = 0.25
    save_autoencoder(network, tmp_path / "model")
    dcae("push", tmp_path / "model", NAME).assert_succeeds()
    front, body = card_of(hub)
    assert "license" not in front
    assert "No licence has been chosen" in body
    assert "AutoencoderDC" not in body
    assert fingerprint(load_autoencoder(NAME, prepare=False)) == fingerprint(network)
    assert load_autoencoder(NAME).scaling_factor == 0.25
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert (Path(find_without_asking(NAME)) / "dcae.json").is_file()  # as a file of latents may name it


def test_a_diffusion_model_arrives_with_its_autoencoder(dcae, hub: Hub, tmp_path: Path) -> None:
    model = write_diffusion(tmp_path / "model", "velocity")
    (model / "README.md").write_text("mine\n")
    pushed = dcae("push", model, NAME, "--license", "mit")
    pushed.assert_succeeds()
    assert "is yours and goes as it is; --license changes nothing in it" in pushed.stderr
    files = hub.files[NAME]
    assert files.pop("README.md") == b"mine\n"  # written by hand, and so left alone
    assert sorted(files) == [
        "autoencoder/dcae.json",
        "autoencoder/weights-1.safetensors",
        "dcae.json",
        "model.safetensors",
    ]
    assert str(tmp_path).encode() not in b"".join(files.values())
    here, there = load_diffusion(model), load_diffusion(NAME)
    options = {"num_steps": 2, "sampler": "heun", "guidance_scale": 2.0}
    assert torch.equal(there.generate([1, 2], **options).latents, here.generate([1, 2], **options).latents)
    sample = ("sample", "--num", 1, "--sampler", "heun", "--steps", 2, "--device", "cpu", "-o", tmp_path / "out")
    dcae(*sample, "--model", NAME).assert_succeeds()


def test_of_a_training_of_a_diffusion_model_the_averaged_weights_go(dcae, hub: Hub, tmp_path: Path) -> None:
    write_latents(tmp_path / "latents")
    train_diffusion(diffusion_recipe(tmp_path))
    dcae("push", tmp_path / "run", NAME).assert_succeeds()
    assert sorted(hub.files[NAME]) == ["README.md", "dcae.json", "model.safetensors"]
    there, here = locate_diffusion(NAME), locate_diffusion(tmp_path / "run")
    assert there.class_names == here.class_names
    assert fingerprint(read_network(there)[0]) == fingerprint(read_network(here)[0])
    assert fingerprint(read_network(there)[0]) != fingerprint(
        read_network(locate_diffusion(tmp_path / "run", weights="raw"))[0]
    )
    assert "4 steps" in card_of(hub)[1]
    assert "latents: latents" in card_of(hub)[1]


def test_a_dry_run_writes_the_card_and_asks_nobody(dcae, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcae_core.checkpoints.hub.upload", None)
    monkeypatch.setattr("dcae_core.checkpoints.hub.require_login", None)
    card = run / "README.md"
    shown = dcae("push", run, NAME, "--dry-run")
    shown.assert_succeeds()
    assert "diffusion_pytorch_model.safetensors" in shown.stdout
    assert str(card) in shown.stderr
    first = card.read_text()
    dcae("push", run, "someone/other", "--dry-run").assert_succeeds()
    assert card.read_text() == first.replace("my-model", "other")  # ours, and so written anew
    card.write_text("by hand")
    dcae("push", run, NAME, "--dry-run").assert_succeeds()
    assert card.read_text() == "by hand"
    card.unlink()


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, ["the server refuses access (403)", "may not write here", "hf auth login"]), (500, ["500"])],
)
def test_a_hub_that_refuses_is_told_in_one_line(dcae, hub: Hub, run: Path, status: int, words: list[str]) -> None:
    hub.refuses = status
    dcae("-q", "push", run, NAME).assert_fails(5, NAME, *words)
    assert not hub.files.get(NAME)


def test_a_licence_that_the_hub_does_not_know_is_told_in_its_words(dcae, hub: Hub, run: Path) -> None:
    hub.refuses_card = '"license" must be one of [apache-2.0, mit]'
    dcae("-q", "push", run, NAME, "--license", "mine").assert_fails(5, NAME, '"license" must be one of')
    assert hub.files[NAME] == {}


def test_offline_means_offline(dcae, hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dcae("-q", "push", run, NAME).assert_fails(5, NAME, "HF_HUB_OFFLINE is set")


def test_a_hub_that_is_not_there_is_told_in_one_line(dcae, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    dcae("-q", "push", run, NAME).assert_fails(5, NAME, "was not written", "refused")


def test_private_is_not_a_wish(dcae, hub: Hub, run: Path) -> None:
    dcae("push", run, NAME, "--private").assert_succeeds()
    assert hub.private[NAME] is True
    hub.private[NAME], hub.files[NAME] = False, {}
    dcae("-q", "push", run, NAME, "--private").assert_fails(2, f"{NAME} exists and is public")
    assert hub.files[NAME] == {}


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    dcae, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    dcae("push", run, NAME).assert_fails(2, "no token for the hub", "hf auth login", "HF_TOKEN")
    dcae("push", run, "my-model", "--dry-run").assert_fails(2, "ORGANISATION/my-model")
    dcae("push", run, "a/b/c", "--dry-run").assert_fails(2, "a/b/c")
    dcae("-q", "push", tmp_path / "nothing", NAME, "--dry-run").assert_fails(3, "is no directory")
    dcae("-q", "push", tmp_path, NAME, "--dry-run").assert_fails(3, "holds no model")
