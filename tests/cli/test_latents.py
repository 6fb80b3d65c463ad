"""`dcae latents`: looking at a dataset, proving it, other programs' layouts."""

import json

import numpy as np
import pytest

from dcae_core.data.latents import LatentDataset
from tests.latents.datasets import write_dataset


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "latents", [5, 3], "float32")
    return tmp_path / "latents"


def test_it_says_what_made_a_dataset_and_what_it_holds(dcae, dataset) -> None:
    facts = json.loads(dcae("latents", "info", dataset, "--json").stdout)
    manifest = LatentDataset(dataset).manifest
    assert (facts["latents"], facts["latent_shape"], facts["classes"]) == (8, [4, 2, 3], 3)
    assert facts["channel_deviation"] == manifest.statistics.channel_std
    assert facts["encoding"] == manifest.encoding
    shown = dcae("latents", "info", dataset).stdout
    assert "dc-ae-f32c32-tiny-1.0 (aaaaaaaaaaaa)" in shown
    assert "4 x 2 x 3" in shown


def test_a_flipped_bit_is_found(dcae, dataset) -> None:
    assert "8 latents in 2 shards, every checksum is right" in dcae("latents", "verify", dataset).stdout
    shard = dataset / "shard-000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    dcae("latents", "verify", dataset).assert_fails(3, "shard-000001.safetensors is damaged")


def test_npy_files_go_out_and_come_back(dcae, dataset, tmp_path) -> None:
    assert "8 latents" in dcae("latents", "export", dataset, "--to", "npy", "-o", tmp_path / "npy").stdout
    scaled = np.load(tmp_path / "npy" / "a" / "image 000.npy")
    assert np.array_equal(scaled, LatentDataset(dataset)[0][0].numpy() * np.float32(0.5))
    given = ("--layout", "npy", "--model", "dc-ae-f32c32-in-1.0", "--resolution", 64, "-o", tmp_path / "back")
    run = dcae("latents", "import", tmp_path / "npy", *given, "--json")
    assert json.loads(run.stdout) == {"out": str(tmp_path / "back"), "latents": 8, "classes": 3}
    encoder = LatentDataset(tmp_path / "back").manifest.encoder
    assert (encoder.name, encoder.scaling_factor) == ("dc-ae-f32c32-in-1.0", 0.3189)


def test_tars_go_out(dcae, dataset, tmp_path) -> None:
    assert dcae("latents", "export", dataset, "--to", "webdataset", "-o", tmp_path / "tars").exit_code == 0
    assert (tmp_path / "tars" / "000000.tar").stat().st_size > 8 * 4 * 2 * 3 * 4


def test_what_does_not_fit_is_told_in_one_line(dcae, dataset, tmp_path) -> None:
    out = ("-o", tmp_path / "out")
    dcae("latents", "export", dataset, "--to", "webdatset", *out).assert_fails(2, "webdatset", "webdataset")
    given = ("--resolution", 64, *out)
    unknown = ("latents", "import", tmp_path, "--model", "vae", *given)
    dcae(*unknown, "--layout", "nyp").assert_fails(2, "nyp", "npy")
    dcae(*unknown, "--layout", "npy").assert_fails(2, "scaling factor of vae", "--scaling-factor")
    dcae(*unknown, "--layout", "npy", "--scaling-factor", "nan").assert_fails(2, "--scaling-factor")
    dcae(*unknown, "--layout", "lightningdit", "--scaling-factor", 1).assert_fails(3, "no .safetensors files")
    dcae("latents").assert_fails(2, "missing command", "dcae latents info LATENTS")
    dcae("latents", "info", tmp_path).assert_fails(3, "manifest.json")
