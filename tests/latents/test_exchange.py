"""Latents in the layouts of other programs."""

import io
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dcae_core.data.latents import LatentDataset, export_npy, export_webdataset, import_lightningdit, import_npy
from dcae_core.errors import DataError, UsageError

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


def write_lightningdit(folder, counts: list[int], *, mirrored: bool = True) -> None:
    """Files as LightningDiT's extraction writes them: item k is `latent_of(k)`, its mirror image the negative."""
    folder.mkdir()
    item = 0
    for number, count in enumerate(counts):
        latents = torch.stack([latent_of(item + i) for i in range(count)])
        tensors = {"latents": latents, "labels": torch.tensor([(item + i) % 3 for i in range(count)])}
        if mirrored:
            tensors["latents_flip"] = -latents
        save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors")
        item += count


@pytest.mark.parametrize("mirrored", [True, False])
def test_lightningdits_files_become_items_and_their_mirror_images(tmp_path, mirrored):
    write_lightningdit(tmp_path / "theirs", [5, 3, 1], mirrored=mirrored)
    manifest = import_lightningdit(tmp_path / "theirs", tmp_path / "ours", ENCODER, resolution=64, shard_size=4)
    dataset = LatentDataset(tmp_path / "ours")
    copies = 1 + mirrored
    assert dataset.shard_counts.tolist() == [4 * copies, 4 * copies, copies]
    assert (manifest.classes, manifest.transform.flipped_copies) == (["0", "1", "2"], mirrored)
    for item in range(9):
        for copy in range(copies):
            latent, label = dataset[item * copies + copy]
            assert torch.equal(latent, -latent_of(item) if copy else latent_of(item))
            assert label == item % 3
    assert dataset.names(1)[:2] == ["latents_rank00_shard000/000004", "latents_rank00_shard001/000000"]


def test_an_interrupted_import_of_lightningdits_files_continues(tmp_path):
    write_lightningdit(tmp_path / "theirs", [5, 3])

    def stop(_):
        raise KeyboardInterrupt

    arguments = {"resolution": 64, "shard_size": 3}
    with pytest.raises(KeyboardInterrupt):
        import_lightningdit(tmp_path / "theirs", tmp_path / "ours", ENCODER, **arguments, advance=stop)
    import_lightningdit(tmp_path / "theirs", tmp_path / "ours", ENCODER, **arguments)
    import_lightningdit(tmp_path / "theirs", tmp_path / "whole", ENCODER, **arguments)
    assert file_bytes(tmp_path / "ours") == file_bytes(tmp_path / "whole")
    with pytest.raises(UsageError, match="other settings"):
        import_lightningdit(tmp_path / "theirs", tmp_path / "ours", ENCODER, resolution=32, shard_size=3)


@pytest.mark.parametrize("damage", ["cut", "shape", "labels", "kind", "mixed", "none"])
def test_files_that_are_not_lightningdits_are_named(tmp_path, damage):
    folder = tmp_path / "theirs"
    write_lightningdit(folder, [2])
    bad = folder / "x.safetensors"
    good = {"latents": torch.zeros(2, 4, 2, 3, dtype=torch.float16), "labels": torch.zeros(2, dtype=torch.int64)}
    mirrored = {"latents_flip": torch.zeros(2, 4, 2, 3, dtype=torch.float16)}
    match damage:
        case "cut":
            whole = (folder / "latents_rank00_shard000.safetensors").read_bytes()
            bad.write_bytes(whole[:-8])
        case "shape":
            save_file(good | mirrored | {"labels": torch.zeros(3, dtype=torch.int64)}, bad)
        case "labels":
            save_file(good | mirrored | {"labels": torch.tensor([-1, 0])}, bad)
        case "kind":
            save_file(good | {"latents": torch.zeros(2, 4, 2, 3, dtype=torch.int64)}, bad)
        case "mixed":
            save_file(good, bad)
        case "none":
            save_file({"weights": torch.zeros(2)}, bad)
    with pytest.raises(DataError, match=r"x\.safetensors"):
        import_lightningdit(folder, tmp_path / "ours", ENCODER, resolution=64)
