"""Images side by side: input, reconstruction and error, or many in a grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dcae_core.data.raster import Raster

ERROR_AT_WHITE = 64  # mean absolute difference of the three channels, of 255; larger ones are as bright

# From black over violet and orange to light yellow: brightness grows evenly, so it also reads in grey.
ERROR_COLOURS = ((0, 0, 0), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 200))


def error_levels(a: Tensor, b: Tensor) -> Image.Image:
    """The mean absolute difference over the channels of two uint8 images (3, H, W), as an image of mode "L"."""
    difference = (a.float() - b.float()).abs().mean(dim=0)
    return Image.fromarray(difference.round().to(torch.uint8).numpy(), "L")


def colour_errors(levels: Image.Image) -> Image.Image:
    """What `error_levels` gave, in colours: black for no error, the lightest one from `ERROR_AT_WHITE` on."""
    stops = np.linspace(0, ERROR_AT_WHITE, len(ERROR_COLOURS))
    table = np.stack(
        [np.interp(np.arange(256), stops, channel) for channel in zip(*ERROR_COLOURS, strict=True)], axis=1
    )
    coloured = levels.copy()
    coloured.putpalette(table.round().astype(np.uint8).tobytes())
    return coloured.convert("RGB")


_MAX_PANEL, _MIN_PANEL = 1536, 256  # larger images are shrunk, smaller ones enlarged by a whole factor
_GAP = 12
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """One autoencoder's part of the comparison: a reconstruction as large as the original, lines of text under it."""

    reconstruction: Raster
    caption: Sequence[str]


def error_panel(a: Raster, b: Raster) -> Image.Image:
    """Where two images of one size differ."""
    shrink = _first_shrink(a)
    levels = Image.new("L", (ceil(a.width / shrink), ceil(a.height / shrink)))
    for top, bottom in a.strips(shrink):
        strip = error_levels(a.rows(top, bottom), b.rows(top, bottom))
        levels.paste(strip.reduce(shrink), (0, top // shrink))
    return colour_errors(_fit(levels, Image.Resampling.BOX))


def panel(image: Raster) -> Image.Image:
    """An image as it is shown: at most 1536 pixels a side, and enlarged by a whole factor where it is tiny."""
    return _fit(image.image(_first_shrink(image)), Image.Resampling.LANCZOS)


def _first_shrink(image: Raster) -> int:
    """By what whole factor an image may be shrunk to be still at least twice as large as a panel."""
    return max(max(image.width, image.height) // (2 * _MAX_PANEL), 1)


def _fit(image: Image.Image, filter_: Image.Resampling) -> Image.Image:
    """Shrink what is larger than a panel; enlarge what is too small to be seen."""
    longest = max(image.size)
    if longest > _MAX_PANEL:
        scale = _MAX_PANEL / longest
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        return image.resize(size, filter_)
    factor = max(_MIN_PANEL // longest, 1)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def compare(original: Raster, caption: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """Draw the comparison; captions are lines of text.

    One column: input | reconstruction | error in a row. Several: the input, then a column for each, the reconstruction
    above its error. Panels are at most 1536 pixels a side, so the cost does not grow with the images.
    """
    error_caption = ("error, mean of channels", f"black 0, lightest {ERROR_AT_WHITE} of 255 and more")
    errors = [error_panel(original, column.reconstruction) for column in columns]
    cells = [(panel(original), caption)]
    cells += [(panel(column.reconstruction), column.caption) for column in columns]
    if len(columns) == 1:
        return _draw_sheet([[*cells, (errors[0], error_caption)]])
    blank = Image.new("RGB", (1, 1), _PAPER)
    return _draw_sheet([cells, [(blank, ()), *((error, error_caption) for error in errors)]])


def _draw_sheet(rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]]) -> Image.Image:
    largest = max(max(panel.size) for row in rows for panel, _ in row)
    text_size = min(max(largest // 32, 14), 32)
    font = ImageFont.load_default(text_size)
    line_height = round(1.35 * text_size)
    text_width = max(font.getlength(line) for row in rows for _, caption in row for line in caption)
    cell_width = max(*(panel.width for row in rows for panel, _ in row), int(text_width) + 1)
    heights = [max(p.height for p, _ in row) + line_height * max(len(c) for _, c in row) + 2 * _GAP for row in rows]
    sheet = Image.new("RGB", (_GAP + len(rows[0]) * (cell_width + _GAP), _GAP + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        caption_top = top + max(panel.height for panel, _ in row) + _GAP // 2
        for index, (panel, caption) in enumerate(row):
            left = _GAP + index * (cell_width + _GAP)
            sheet.paste(panel, (left, top))
            for number, line in enumerate(caption):
                draw.text((left, caption_top + number * line_height), line, fill=_INK, font=font)
        top += height
    return sheet


def image_grid(images: Iterable[Image.Image], count: int, captions: Sequence[str] | None = None) -> Image.Image:
    """`count` images of one size, row by row, as nearly square as they go; the rest of the last row is white.

    Captions stand below their images, as far as they fit.
    """
    columns = isqrt(count - 1) + 1
    grid = Image.new("RGB", (1, 1), "white")
    draw, font, line = ImageDraw.Draw(grid), ImageFont.load_default(10), 0
    for position, image in enumerate(images):
        if position == 0:
            text_size = min(max(image.width // 16, 10), 24)
            font, line = ImageFont.load_default(text_size), round(1.4 * text_size) if captions else 0
            grid = Image.new("RGB", (columns * image.width, ceil(count / columns) * (image.height + line)), "white")
            draw = ImageDraw.Draw(grid)
        left, top = position % columns * image.width, position // columns * (image.height + line)
        grid.paste(image, (left, top))
        if captions:
            text = _cut(captions[position], font, image.width - 4)
            draw.text((left + 2, top + image.height), text, fill=_INK, font=font)
    return grid


def _cut(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a line as fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    return next((cut for end in range(len(text), 0, -1) if font.getlength(cut := text[:end] + "...") <= width), "")
