import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dcae_core.data.raster import Raster
from dcae_core.pipelines.comparison import Column, compare, error_panel


def raster(image: Image.Image) -> Raster:
    return Raster.of_image(image, Path(tempfile.gettempdir()))


def flat(value: int, height: int = 64, width: int = 96) -> Raster:
    return raster(Image.new("RGB", (width, height), (value,) * 3))


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L")).mean())


def test_the_error_panel_is_black_where_nothing_differs_and_grows_brighter_with_the_error() -> None:
    assert brightness(error_panel(flat(7), flat(7))) == 0
    levels = [brightness(error_panel(flat(100), flat(100 + step))) for step in (4, 16, 32, 64)]
    assert levels == sorted(levels)
    assert levels[-1] > 230
    assert brightness(error_panel(flat(0), flat(255))) == levels[-1]


def test_the_error_panel_shows_where() -> None:
    changed = Image.new("RGB", (300, 300), (50, 50, 50))
    changed.paste((120, 120, 120), (0, 200, 100, 300))
    error = np.asarray(error_panel(flat(50, 300, 300), raster(changed)).convert("L"))
    assert (error[:200] == 0).all()
    assert (error[200:, :100] > 200).all()


def test_one_column_is_a_row_of_three_panels_at_the_size_of_the_image() -> None:
    original, other = flat(200, 256, 256), flat(100, 256, 256)
    sheet = np.asarray(compare(original, ("input",), [Column(other, ("model", "PSNR"))]))
    gap = 12
    assert sheet.shape[1] == 3 * 256 + 4 * gap
    assert (sheet[gap : gap + 256, gap : gap + 256] == 200).all()
    assert (sheet[gap : gap + 256, 2 * gap + 256 : 2 * (gap + 256)] == 100).all()
    captions = sheet[2 * gap + 256 :]
    assert (captions < 100).any()  # ink under the panels


def test_large_images_are_shrunk_and_tiny_ones_enlarged() -> None:
    huge = compare(flat(9, 64, 5000), ("input",), [Column(flat(9, 64, 5000), ("model",))])
    assert huge.width < 3 * 1600
    tiny = compare(flat(9, 1, 1), ("input",), [Column(flat(9, 1, 1), ("model",))])
    assert tiny.width > 3 * 256
