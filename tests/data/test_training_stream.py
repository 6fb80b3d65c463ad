"""The stream of training crops: a function of the seed and the position, whoever reads it."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcae_core.data.batches import (
    BatchPlan,
    CropSettings,
    CropStream,
    ImageOrder,
    choose_box,
    load_batches,
    random_crop,
)
from dcae_core.data.decoded_cache import open_decoded_cache
from dcae_core.data.sources import DecodedOnDemand, find_images
from dcae_core.errors import DataError
from dcae_core.recipes.train_ae import DataSettings
from dcae_core.training import train_ae
from tests.training.small_runs import write_images


def stream(*folders: Path, resolution: int = 8, seed: int = 0, weights: list[float] | None = None) -> CropStream:
    collections = [DecodedOnDemand(find_images([folder])) for folder in folders]
    return CropStream(collections, weights or [1.0] * len(folders), CropSettings(resolution), (seed,))


def test_an_epoch_shows_every_image_once() -> None:
    order = ImageOrder((5,), [7], [1.0])
    epochs = [[order[epoch * 7 + place][1] for place in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [order[position] for position in (20, 3, 20)] == [order[20], order[3], order[20]]
    assert [ImageOrder((6,), [7], [1.0])[place][1] for place in range(7)] != epochs[0]


def test_sources_are_drawn_by_weight() -> None:
    order = ImageOrder((0,), [10, 1000], [3.0, 1.0])
    drawn = [order[position] for position in range(2000)]
    assert np.mean([source == 0 for source, _ in drawn]) == pytest.approx(0.75, abs=0.03)
    assert {image for source, image in drawn if source == 0} == set(range(10))


def test_boxes_have_the_area_and_shape_they_should() -> None:
    settings = CropSettings(8, scale=(0.2, 0.6), aspect_ratio=(0.5, 2.0))
    generator = np.random.default_rng(0)
    boxes = np.array([choose_box(200, 100, settings, generator) for _ in range(500)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = widths * heights / 20000, widths / heights
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= 200
    assert boxes[:, 3].max() <= 100
    assert 0.19 < areas.min() < 0.25
    assert 0.55 < areas.max() < 0.61
    assert 0.48 < ratios.min() < 0.8
    assert 1.5 < ratios.max() < 2.1
    assert abs(np.log(ratios).mean()) < 0.2


@pytest.mark.parametrize("size", [(1, 1), (500, 2), (2, 500)])
def test_odd_images_still_give_a_crop(size: tuple[int, int]) -> None:
    crop = random_crop(Image.new("RGB", size, (10, 20, 30)), CropSettings(8), np.random.default_rng(0))
    assert crop.shape == (3, 8, 8)
    assert np.all(crop == np.array([10, 20, 30])[:, None, None])


def test_pixels_and_images_give_the_same_crop() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    crops = [random_crop(x, CropSettings(8), np.random.default_rng(1)) for x in (pixels, Image.fromarray(pixels))]
    assert np.array_equal(*crops)


def test_processes_and_parts_share_each_step() -> None:
    whole = BatchPlan(12).positions(3, 0)
    shared = [BatchPlan(12, 2, 3, rank).positions(3, part) for part in range(2) for rank in range(3)]
    assert sorted(position for positions in shared for position in positions) == whole == list(range(36, 48))
    assert BatchPlan(12, 2, 3).largest_piece == 2


def test_what_cannot_be_shared_evenly_ends_in_a_shorter_piece() -> None:
    pieces = [BatchPlan(7, 3).positions(1, part) for part in range(3)]
    assert pieces == [[7, 8, 9], [10, 11], [12, 13]]
    for batch_size in range(6, 40):
        plans = [BatchPlan(batch_size, 2, 3, rank) for rank in range(3)]
        pieces = [plan.positions(0, part) for part in range(2) for plan in plans]
        assert [position for piece in pieces for position in piece] == list(range(batch_size))
        assert {len(piece) for piece in pieces} <= {plans[0].largest_piece, plans[0].largest_piece - 1}


def test_workers_and_starting_points_change_nothing(tmp_path: Path) -> None:
    folder = write_images(tmp_path)
    plan = BatchPlan(4)
    batches = [list(load_batches(stream(folder), plan, range(5), workers)) for workers in (0, 2)]
    later = list(load_batches(stream(folder), plan, range(3, 5), 0))
    for a, b in [*zip(batches[0], batches[1], strict=True), *zip(batches[0][3:], later, strict=True)]:
        assert a.pixels.equal(b.pixels)
        assert a.names == b.names


def test_tar_shards_lists_and_folders_give_the_same_crops(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder", count=4)
    paths = sorted(folder.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"folder/{path.name}\n" for path in paths))
    with tarfile.open(tmp_path / "shard-000.tar", "w") as archive:
        for index, path in enumerate(paths):
            for suffix, content in ((".png", path.read_bytes()), (".cls", str(index).encode())):
                member = tarfile.TarInfo(path.stem + suffix)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    sources = (folder, tmp_path / "list.txt", tmp_path / "shard-000.tar")
    crops = [[stream(source)[position].pixels for position in range(6)] for source in sources]
    assert np.array_equal(crops[0], crops[1])
    assert np.array_equal(crops[0], crops[2])


def test_damaged_image_gives_way_to_the_next(tmp_path: Path) -> None:
    folder = write_images(tmp_path, count=3)
    (folder / "01.png").write_bytes(b"nothing")
    samples = [stream(folder)[position] for position in range(3)]
    replaced = [sample for sample in samples if sample.damaged]
    assert len(replaced) == 1
    assert replaced[0].name.endswith("02.png")
    assert "01.png" in replaced[0].damaged[0]


def test_filling_a_decoded_cache_is_told_and_reading_it_is_not(tmp_path: Path, monkeypatch) -> None:
    folder = write_images(tmp_path / "images", count=3, size=24)
    monkeypatch.setattr(train_ae, "_SECONDS_BETWEEN_NOTES", 0.0)
    settings = DataSettings.model_validate(
        {"sources": [{"path": str(folder)}], "decoded_cache": str(tmp_path / "cache")}
    )
    notes: list[str] = []
    train_ae.TrainingImages(settings, notes.append)
    assert [note.partition(": ")[2] for note in notes] == ["1 of 3", "2 of 3", "3 of 3"]
    train_ae.TrainingImages(settings, notes.append)
    assert len(notes) == 3


def test_decoded_cache_holds_shrunk_images_and_notices_new_ones(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=3, size=24)
    (folder / "09.png").write_bytes(b"nothing")

    def cache():
        return open_decoded_cache(DecodedOnDemand(find_images([folder])), tmp_path / "cache", 12)

    first = cache()
    assert len(first) == 3
    assert len(first.damaged) == 1
    assert first.pixels(0).shape == (12, 12, 3)
    exact = open_decoded_cache(DecodedOnDemand(find_images([folder])), tmp_path / "cache", 100)
    assert np.array_equal(exact.pixels(1), np.asarray(Image.open(folder / "01.png")))
    Image.new("RGB", (24, 24), "red").save(folder / "00.png")
    assert np.all(cache().pixels(0) == (255, 0, 0))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    for path in (tmp_path / "cache").glob("*/pixels.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged cache"):
        cache()
