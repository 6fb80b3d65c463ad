"""A damaged shard among good images: each command does the good ones and reports the other, or fails where told to."""

import json
import shutil
from pathlib import Path

import pytest

from dcae_core.checkpoints import save_autoencoder
from dcae_core.data.latents import LatentDataset
from tests.metrics.cheap_inception import in_place_of_inception
from tests.small import small_autoencoder
from tests.training.small_runs import OPTIMISER, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six good images, a tar that is cut off, and a link to the folder itself."""
    folder = write_images(tmp_path / "images", count=6)
    (folder / "cut.tar").write_bytes(b"a" * 700)
    (folder / "again").symlink_to(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    network = small_autoencoder()
    network.scaling_factor = 0.5
    save_autoencoder(network, tmp_path / "model", layout="dcae")
    return tmp_path / "model"


def test_encode_dataset_lists_it_in_the_manifest(dcae, images: Path, model: Path, tmp_path: Path) -> None:
    command = ("encode-dataset", "--images", images, "--model", model, "--resolution", 16, "--shard-size", 4)
    run = dcae(*command, "--out", tmp_path / "out", "--json")
    run.assert_succeeds()
    [damaged] = json.loads(run.stdout)["damaged"]
    assert damaged["picture"] == "cut.tar"
    assert "not a whole" in damaged["reason"]
    assert str(tmp_path) not in damaged["reason"]
    assert len(LatentDataset(tmp_path / "out")) == 6
    shutil.rmtree(tmp_path / "out")
    dcae(*command, "--out", tmp_path / "out", "--damaged", "fail").assert_fails(3, "cut.tar", "not a whole")


def test_eval_and_fid_ref_leave_it_out_with_a_line(
    dcae, images: Path, model: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DCAE_CACHE", str(tmp_path / "cache"))
    command = ("eval", "--images", images, "--model", model, "--resolution", 16, "--psnr")
    run = dcae(*command, "--json")
    run.assert_succeeds()
    assert "cut.tar is not a whole" in run.stderr
    assert json.loads(run.stdout)["num_images"] == 6
    dcae(*command, "--damaged", "fail").assert_fails(3, "cut.tar", "not a whole")
    with in_place_of_inception():
        made = dcae("fid-ref", "--images", images, "--resolution", 16, "--out", tmp_path / "ref.npz")
        made.assert_succeeds()
        assert "cut.tar is not a whole" in made.stderr
        compared = dcae("eval", "--generated", images, "--resolution", 16, "--fid", "--ref", images)
        compared.assert_succeeds()
        assert "left out of the reference" in compared.stderr


def test_training_goes_on_without_it_and_lists_it(dcae, images: Path, model: Path, tmp_path: Path) -> None:
    recipe = {
        "command": "train-ae",
        "run_dir": str(tmp_path / "run"),
        "data": {"sources": [{"path": str(images)}]},
        "network": {"weights": str(model)},
        "phases": [
            {
                "name": "full",
                "resolution": 16,
                "batch_size": 2,
                "steps": 2,
                "losses": {"l1": 1.0},
                "optimiser": OPTIMISER,
            }
        ],
        "validation": {"path": str(images), "resolution": 16, "num_images": 2, "every": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run = dcae("train-ae", tmp_path / "recipe.yaml", "--device", "cpu")
    run.assert_succeeds()
    assert "left out of the validation" in run.stderr
    assert "cut.tar is not a whole" in (tmp_path / "run" / "damaged.txt").read_text()
    dry = dcae("train-ae", tmp_path / "recipe.yaml", "--dry-run", "--set", f"run_dir={tmp_path / 'other'}")
    assert "cut.tar" in dry.stdout + dry.stderr
    failing = ("--set", "data.damaged=fail", "--set", f"run_dir={tmp_path / 'third'}")
    dcae("train-ae", tmp_path / "recipe.yaml", *failing).assert_fails(3, "cut.tar", "not a whole")


def test_nothing_but_damaged_shards_is_a_failure(dcae, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "bad" / name).write_bytes(b"a" * 700)
    run = dcae("encode-dataset", "--images", tmp_path / "bad", "--model", model, "--out", tmp_path / "out")
    run.assert_fails(3, "a.tar", "1 more")
