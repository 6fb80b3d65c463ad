"""Latents in the layouts of other programs."""

import io
import tarfile

import numpy as np
import pytest
import torch

from dcae_core.data.latents import LatentDataset, export_npy, export_webdataset, import_npy
from dcae_core.errors import DataError

from .datasets import ENCODER, file_bytes, latent_of, write_dataset


def test_npy_folders_hold_scaled_latents_and_come_back(tmp_path):
    write_dataset(tmp_path / "set", [5, 3], "float32")
    export_npy(LatentDataset(tmp_path / "set"), tmp_path / "npy")
    scaled = np.load(tmp_path / "npy" / "b" / "image 001.npy")
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, 0.5 * latent_of(1, dtype="float32").numpy())

    manifest = import_npy(tmp_path / "npy", tmp_path / "back", ENCODER, resolution=64, shard_size=3)
    dataset = LatentDataset(tmp_path / "back")
    assert manifest.classes == ["a", "b", "c"]
    assert dataset.shard_counts.tolist() == [3, 3, 2]
    by_class = [0, 3, 6, 1, 4, 7, 2, 5]
    for place, item in enumerate(by_class):
        latent, label = dataset[place]
        assert torch.equal(latent, latent_of(item, dtype="float32"))
        assert label == item % 3


def test_an_interrupted_import_continues(tmp_path):
    write_dataset(tmp_path / "set", [5, 3], "float32")
    export_npy(LatentDataset(tmp_path / "set"), tmp_path / "npy")

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_npy(tmp_path / "npy", tmp_path / "back", ENCODER, resolution=64, shard_size=3, advance=stop)
    import_npy(tmp_path / "npy", tmp_path / "back", ENCODER, resolution=64, shard_size=3)
    import_npy(tmp_path / "npy", tmp_path / "whole", ENCODER, resolution=64, shard_size=3)
    assert file_bytes(tmp_path / "back") == file_bytes(tmp_path / "whole")


def test_mirrored_copies_have_their_own_file(tmp_path):
    write_dataset(tmp_path / "set", [4], flipped=True)
    export_npy(LatentDataset(tmp_path / "set"), tmp_path / "npy")
    assert sorted(file_bytes(tmp_path / "npy")) == [
        "a/image 000.flip.npy", "a/image 000.npy", "c/image 002.flip.npy", "c/image 002.npy",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "pickle", "shape", "dtype"])
def test_files_that_are_no_latents_are_named(tmp_path, damage):
    folder = tmp_path / "npy" / "a"
    folder.mkdir(parents=True)
    np.save(folder / "0.npy", np.zeros((4, 2, 3), np.float32))
    bad = folder / "1.npy"
    if damage == "cut":
        bad.write_bytes((folder / "0.npy").read_bytes()[:-1])
    elif damage == "pickle":
        np.save(bad, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "shape":
        np.save(bad, np.zeros((4, 3, 3), np.float32))
    else:
        np.save(bad, np.zeros((4, 2, 3), np.float64))
    with pytest.raises(DataError, match=r"1\.npy"):
        import_npy(tmp_path / "npy", tmp_path / "out", ENCODER, resolution=64)


def test_a_folder_without_npy_files_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no <class>/<name>\.npy files"):
        import_npy(tmp_path, tmp_path / "out", ENCODER, resolution=64)


def test_webdataset_tars_hold_unscaled_latents_and_labels(tmp_path):
    write_dataset(tmp_path / "set", [5, 3])
    dataset = LatentDataset(tmp_path / "set")
    export_webdataset(dataset, tmp_path / "tars", items_per_tar=6)
    export_webdataset(dataset, tmp_path / "again", items_per_tar=6)
    assert file_bytes(tmp_path / "tars") == file_bytes(tmp_path / "again")
    seen = 0
    for path in sorted((tmp_path / "tars").iterdir()):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for array, label in zip(members[::2], members[1::2], strict=True):
                assert array.name.removesuffix(".npy") == label.name.removesuffix(".cls") == f"{seen:012d}"
                latent = np.load(io.BytesIO(tar.extractfile(array).read()))
                assert np.array_equal(latent, latent_of(seen).float().numpy())
                assert int(tar.extractfile(label).read()) == seen % 3
                seen += 1
    assert seen == 8
