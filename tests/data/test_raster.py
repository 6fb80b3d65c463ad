import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.data import raster as raster_module
from dcae_core.data.raster import Raster, write_png
from dcae_core.errors import ResourceError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8), "RGB")


@pytest.fixture(params=["memory", "file"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images of the test are kept, in strips of a few rows."""
    monkeypatch.setattr(raster_module, "_STRIP_BYTES", 1000)
    if request.param == "file":
        monkeypatch.setattr(raster_module, "_MEMORY_BYTES", 0)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(("width", "height"), [(1, 1), (50, 37), (3, 400), (700, 2)])
def test_rows_come_back_as_they_went_in(tmp_path: Path, width: int, height: int) -> None:
    image = noise(width, height)
    raster = Raster.of_image(image, tmp_path)
    assert list(tmp_path.iterdir()) == []  # also a kill leaves nothing behind
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(raster.rows(0, height), pixels)
    assert torch.equal(raster.rows(height // 2, height), pixels[:, height // 2 :])
    assert np.array_equal(np.asarray(raster.image()), np.asarray(image))
    assert np.array_equal(np.asarray(raster.image(shrink=3)), np.asarray(image.reduce(3)))


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(("width", "height"), [(1, 1), (50, 37), (3, 400), (700, 2)])
def test_a_png_holds_the_pixels(tmp_path: Path, width: int, height: int) -> None:
    image = noise(width, height)
    file = io.BytesIO()
    write_png(Raster.of_image(image, tmp_path), file)
    decoded = Image.open(file)
    decoded.verify()
    decoded = Image.open(file)
    assert (decoded.format, decoded.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_a_png_is_about_as_small_as_that_of_pillow(tmp_path: Path) -> None:
    image = Image.open(Path(__file__).parents[2] / "examples" / "test_images" / "astronaut.png").convert("RGB")
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_png(Raster.of_image(image, tmp_path), ours)
    image.save(theirs, "PNG", compress_level=4)
    assert ours.tell() < 1.02 * theirs.tell()


def test_a_large_image_needs_a_directory_that_can_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="could not write"):
        Raster(4000, 4000, tmp_path / "missing")


def test_a_full_disk_is_one_clear_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no file that is always full")
    raster = Raster(4, 4, Path("out"))
    raster._file = full.open("r+b", buffering=0)
    with pytest.raises(ResourceError, match="the disk is full"):
        raster.append(torch.zeros(3, 4, 4, dtype=torch.uint8))
