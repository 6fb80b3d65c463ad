"""Damage of every kind is found and named."""

import json
import shutil

import pytest

from dcae_core.data.latents import check_encoder, verify_dataset
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.errors import DataError

from .datasets import write_dataset

COUNTS = [5, 4, 5]


def test_a_whole_dataset_has_no_faults(tmp_path):
    write_dataset(tmp_path, COUNTS)
    seen = []
    assert verify_dataset(tmp_path, seen.append)[1] == []
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_found_anywhere(tmp_path, place):
    write_dataset(tmp_path, COUNTS)
    shard = tmp_path / "shard-000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[place] ^= 4
    shard.write_bytes(content)
    (fault,) = verify_dataset(tmp_path)[1]
    assert "shard-000001.safetensors is damaged" in fault


def test_missing_duplicate_and_unlisted_shards_are_named(tmp_path):
    write_dataset(tmp_path, COUNTS)
    (tmp_path / "shard-000001.safetensors").unlink()
    shutil.copy(tmp_path / "shard-000000.safetensors", tmp_path / "shard-000002.safetensors")
    shutil.copy(tmp_path / "shard-000000.safetensors", tmp_path / "shard-000003.safetensors")
    missing, duplicate, unlisted = verify_dataset(tmp_path)[1]
    assert "shard-000001.safetensors is missing" in missing
    assert "shard-000002.safetensors is a duplicate of shard shard-000000.safetensors" in duplicate
    assert "shard-000003.safetensors is not in the manifest" in unlisted


def _edit(directory, change):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"].append(m["shards"][0]) or m.update(count=19), "duplicate shard: entries 0 and 3"),
        (lambda m: m["shards"].pop(), "do not add up"),
        (lambda m: m.update(version=2), "version"),
        (lambda m: m["shards"][0].update(file="../outside.safetensors"), r"shards\.0\.file"),
        (lambda m: m["encoder"].update(scaling_factor=-1), r"encoder\.scaling_factor"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, change, message):
    write_dataset(tmp_path, COUNTS)
    _edit(tmp_path, change)
    with pytest.raises(DataError, match=message):
        verify_dataset(tmp_path)


def test_a_cut_manifest_is_refused(tmp_path):
    write_dataset(tmp_path, COUNTS)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="not valid JSON"):
        verify_dataset(tmp_path)


def test_latents_of_another_encoder_are_refused_by_name(tmp_path):
    manifest = write_dataset(tmp_path, COUNTS)
    name = manifest.encoder.name

    def check(name: str, fingerprint: str | None, encoder_fingerprint: str | None = None) -> None:
        used = EncoderRecord(
            name=name, fingerprint=fingerprint, encoder_fingerprint=encoder_fingerprint, scaling_factor=None
        )
        check_encoder(manifest, "here", used)

    check("a renamed directory", "a" * 64)
    check(name, None)
    with pytest.raises(DataError, match=f"{name}.*not by {name} .bbbbbbbbbbbb"):
        check(name, "b" * 64)
    with pytest.raises(DataError, match=f"not by {name}"):
        check(name, "b" * 64, "c" * 64)  # nothing is known of the encoder alone
    with pytest.raises(DataError, match=r"not by dc-ae-f64c128-in-1\.0"):
        check("dc-ae-f64c128-in-1.0", None)
