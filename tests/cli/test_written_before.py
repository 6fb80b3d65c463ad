"""What an earlier version wrote still opens and continues: an autoencoder, latents, both kinds of runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dcae_core
from dcae_core.checkpoints.denoisers import locate_diffusion
from dcae_core.data.latents import LatentDataset, verify_dataset
from dcae_core.weights import fingerprint

FIXTURE = Path(__file__).parent.parent / "fixtures" / "written_before"


@pytest.fixture
def written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, and the working directory: its files name each other by relative paths."""
    shutil.copytree(FIXTURE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_an_autoencoder_opens_and_keeps_its_identity(written_before: Path) -> None:
    autoencoder = dcae_core.load_autoencoder("autoencoder", prepare=False)
    assert fingerprint(autoencoder) == json.loads(Path("latents/manifest.json").read_text())["encoder"]["fingerprint"]


def test_latents_open_and_are_whole(written_before: Path) -> None:
    assert verify_dataset("latents")[1] == []
    dataset = LatentDataset("latents")
    shards = [load_file(path)["latents"] for path in sorted(Path("latents").glob("*.safetensors"))]
    assert torch.equal(dataset.read(range(len(dataset)))[0], torch.cat(shards))


def test_a_diffusion_run_opens(written_before: Path) -> None:
    """Its description also has a setting of the training, which was once the network's, and lacks newer ones."""
    description = json.loads(Path("diffusion_run/dcae.json").read_text())["diffusion"]["config"]
    assert "activation_checkpointing" in description
    denoiser = locate_diffusion("diffusion_run").config
    assert not hasattr(denoiser, "activation_checkpointing")
    newer = {"qk_norm": False, "adaptive_channels": False}
    assert denoiser.to_dict() | {"activation_checkpointing": False} == description | newer


@pytest.mark.parametrize(
    ("command", "run", "weights", "expected"),
    [
        ("train-ae", "ae_run", "autoencoder", "ae_step_8"),
        ("train-diffusion", "diffusion_run", "model", "diffusion_step_8"),
    ],
)
def test_a_run_continues_to_the_same_weights(
    dcae, written_before: Path, command: str, run: str, weights: str, expected: str
) -> None:
    """Bit for bit on the machine that wrote them; elsewhere sums run in another order."""
    outcome = dcae(command, f"{command}.yaml")
    assert outcome.exit_code == 0, outcome.stderr
    # Whether networks are compiled was "no" by default, and is left to the device and the run's length now.
    assert outcome.stderr.count("changed since") == 1
    assert "changed since this run was last started: execution.compile\n" in outcome.stderr
    assert "continuing after step" in outcome.stderr
    for name in (weights, "ema"):
        ours = load_file(Path(run, "checkpoints", "step_8", f"{name}.safetensors"))
        theirs = load_file(Path("expected", expected, f"{name}.safetensors"))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)
