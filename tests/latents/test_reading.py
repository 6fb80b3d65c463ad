"""What is written is what is read, wherever it lies."""

import http.server
import threading
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents import LatentDataset, LatentDatasetWriter, WindowShuffle, load_latents
from dcae_core.data.latents.store import RemoteStore
from dcae_core.errors import DataError, DownloadError, UsageError

from .datasets import file_bytes, latent_of, plan, write_dataset, write_shard

COUNTS = [5, 0, 4, 5]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_item_comes_back_bit_for_bit(tmp_path, dtype):
    write_dataset(tmp_path, COUNTS, dtype)
    dataset = LatentDataset(tmp_path)
    assert len(dataset) == 14
    order = [13, 0, 5, 4, 5]
    latents, labels = dataset.read(order)
    for place, item in enumerate(order):
        assert torch.equal(latents[place], latent_of(item, dtype=dtype))
        single, label = dataset[item]
        assert torch.equal(single, latents[place])
        assert label == labels[place] == item % 3


def test_pytorchs_data_loader_takes_it_with_workers(tmp_path):
    write_dataset(tmp_path, COUNTS)
    loader = torch.utils.data.DataLoader(LatentDataset(tmp_path), batch_size=4, num_workers=2)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 2]
    assert torch.equal(torch.cat([latents for latents, _ in batches])[9], latent_of(9))


def test_shards_are_plain_safetensors(tmp_path):
    write_dataset(tmp_path, COUNTS)
    tensors = safetensors.torch.load_file(tmp_path / "shard-000002.safetensors")
    assert torch.equal(tensors["latents"][1], latent_of(6))
    assert tensors["labels"].tolist() == [2, 0, 1, 2]


def test_items_outside_are_refused(tmp_path):
    write_dataset(tmp_path, COUNTS)
    dataset = LatentDataset(tmp_path)
    for outside in (-1, 14):
        with pytest.raises(IndexError):
            dataset[outside]
        with pytest.raises(IndexError):
            dataset.read([0, outside])


def test_manifest_describes_the_latents(tmp_path):
    manifest = write_dataset(tmp_path, COUNTS)
    values = torch.stack([latent_of(item) for item in range(14)]).double()
    assert manifest.statistics.channel_mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert manifest.statistics.channel_std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    assert manifest.statistics.rms == pytest.approx(values.square().mean().sqrt().item())
    assert [damage.image for damage in manifest.damaged] == ["broken 1.jpg"]
    assert manifest.shards[1].statistics is None


def test_names_are_kept_per_image(tmp_path):
    write_dataset(tmp_path, [4, 2], flipped=True)
    dataset = LatentDataset(tmp_path)
    assert dataset.names(0) == ["a/image 000.jpg", "c/image 002.jpg"]
    assert dataset.names(1) == ["b/image 004.jpg"]


def test_order_of_writing_and_stops_leave_no_trace(tmp_path):
    write_dataset(tmp_path / "whole", COUNTS)
    first = LatentDatasetWriter(tmp_path / "stopped", plan(COUNTS))
    first.begin()
    for number in (3, 1):
        write_shard(first, COUNTS, number)
    (tmp_path / "stopped" / ".shard-000002.safetensors.99.partial").write_bytes(b"half")

    second = LatentDatasetWriter(tmp_path / "stopped", plan(COUNTS))
    second.begin()
    kept = [number for number in range(4) if second.finished(number)]
    assert kept == [1, 3]
    for number in (2, 0):
        write_shard(second, COUNTS, number)
    second.finish()
    assert file_bytes(tmp_path / "stopped") == file_bytes(tmp_path / "whole")

    third = LatentDatasetWriter(tmp_path / "stopped", plan(COUNTS))
    third.begin()
    assert third.is_complete()


def test_other_settings_and_other_files_are_refused(tmp_path):
    write_dataset(tmp_path / "set", COUNTS)
    other = plan(COUNTS).model_copy(update={"encoding": {"batch_size": 3}})
    with pytest.raises(UsageError, match=r"encoding\.batch_size: 2 there, 3 now"):
        LatentDatasetWriter(tmp_path / "set", other).begin()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UsageError, match="holds other files"):
        LatentDatasetWriter(tmp_path / "photos", plan(COUNTS)).begin()


def test_finishing_too_early_names_the_missing_shard(tmp_path):
    writer = LatentDatasetWriter(tmp_path, plan(COUNTS))
    writer.begin()
    write_shard(writer, COUNTS, 0)
    with pytest.raises(DataError, match="shard 1 is missing"):
        writer.finish()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def http_server(tmp_path):
    handler = partial(_QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _put_in_memory(directory: Path, url: str) -> None:
    for name, content in file_bytes(directory).items():
        with fsspec.open(f"{url}/{name}", "wb") as file:
            file.write(content)


@pytest.mark.parametrize("place", ["memory", "http"])
def test_remote_datasets_read_like_local_ones(tmp_path, http_server, place):
    write_dataset(tmp_path / "set", COUNTS)
    url = "memory://latents/set" if place == "memory" else f"{http_server}/set"
    if place == "memory":
        _put_in_memory(tmp_path / "set", url)
    dataset = LatentDataset(url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    latents, labels = dataset.read(np.arange(14)[::-1])
    expected, expected_labels = LatentDataset(tmp_path / "set").read(np.arange(14)[::-1])
    assert torch.equal(latents, expected)
    assert torch.equal(labels, expected_labels)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3


def test_a_damaged_or_missing_remote_shard_is_named(tmp_path):
    write_dataset(tmp_path / "set", COUNTS)
    _flip_bit(tmp_path / "set" / "shard-000000.safetensors")
    (tmp_path / "set" / "shard-000002.safetensors").unlink()
    _put_in_memory(tmp_path / "set", "memory://latents/damaged")
    dataset = LatentDataset("memory://latents/damaged", cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"shard-000000.safetensors is damaged"):
        dataset[0]
    with pytest.raises(DataError, match=r"shard-000002.safetensors is missing"):
        dataset[5]
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_the_cache_keeps_to_its_size(tmp_path):
    manifest = write_dataset(tmp_path / "set", [5] * 8)
    _put_in_memory(tmp_path / "set", "memory://latents/many")
    size = manifest.shards[0].bytes
    dataset = LatentDataset("memory://latents/many", cache=tmp_path / "cache", cache_bytes=3 * size)
    for item in range(len(dataset)):
        assert torch.equal(dataset[item][0], latent_of(item))
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.safetensors")) <= 3 * size
    with pytest.raises(UsageError, match="cannot hold a shard"):
        LatentDataset("memory://latents/many", cache=tmp_path / "small", cache_bytes=size - 1)[0]


def test_a_broken_connection_is_taken_up_again(tmp_path, monkeypatch):
    write_dataset(tmp_path / "set", COUNTS)
    _put_in_memory(tmp_path / "set", "memory://latents/breaking")
    monkeypatch.setattr("dcae_core.data.latents.store.time.sleep", lambda _: None)
    dataset = LatentDataset("memory://latents/breaking", cache=tmp_path / "cache")
    _break_connections(monkeypatch, dataset.store, times=2)
    assert torch.equal(dataset[0][0], latent_of(0))
    _break_connections(monkeypatch, dataset.store, times=3)
    with pytest.raises(DownloadError, match="connection reset"):
        dataset[5]


def _break_connections(monkeypatch, store: RemoteStore, times: int) -> None:
    monkeypatch.setattr("dcae_core.data.latents.store._BLOCK", 100)
    real_open, broken = type(store._files).open, []

    def open_and_break(self, *args, **kwargs):
        file = real_open(self, *args, **kwargs)
        read = file.read
        blocks = iter(range(100))

        def fail_on_the_second_block(size):
            if len(broken) < times and next(blocks) == 1:
                broken.append(1)
                raise OSError("connection reset")
            return read(size)

        file.read = fail_on_the_second_block
        return file

    monkeypatch.setattr(type(store._files), "open", open_and_break)


def test_the_loader_fetches_shards_before_they_are_wanted(tmp_path):
    write_dataset(tmp_path / "set", [4] * 6)
    _put_in_memory(tmp_path / "set", "memory://latents/ahead")
    dataset = LatentDataset("memory://latents/ahead", cache=tmp_path / "cache")
    order = WindowShuffle(dataset.shard_counts, seed=0, window=1)
    batches = load_latents(dataset, order, BatchPlan(4), range(1), lambda batch: batch, batches_ahead=1, steps_ahead=2)
    assert len(list(batches)) == 1
    dataset.store._pool.shutdown(wait=True)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2  # this batch's, and the one two batches on


def test_missing_or_resized_shards_are_refused_on_opening(tmp_path):
    write_dataset(tmp_path, COUNTS)
    shard = tmp_path / "shard-000003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-000003.safetensors has \d+ bytes, the manifest says"):
        LatentDataset(tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000003.safetensors is missing"):
        LatentDataset(tmp_path)
    with pytest.raises(DataError, match=r"manifest.json is missing"):
        LatentDataset(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"manifest.json is missing; did you mean {tmp_path}"):
        LatentDataset(tmp_path.with_name(f"{tmp_path.name}s"))


def test_a_file_that_is_no_shard_is_refused(tmp_path):
    write_dataset(tmp_path, COUNTS)
    shard = tmp_path / "shard-000000.safetensors"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(DataError, match="not a latent shard"):
        LatentDataset(tmp_path)[0]


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
