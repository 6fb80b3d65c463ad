"""One picture to judge a reconstruction by: input, reconstruction and error side by side, with a caption under each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ERROR_AT_WHITE = 64  # mean absolute difference of the three channels, of 255

_MAX_PANEL, _MIN_PANEL = 1536, 256  # larger pictures are shrunk, smaller ones enlarged by a whole factor
_GAP = 12
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_STRIP_ROWS = 256
# From black over violet and orange to light yellow: brightness grows evenly, so it also reads in grey.
_COLOUR_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array([(0, 0, 0), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 200)], dtype=np.float64)


@dataclass(frozen=True)
class Column:
    """One autoencoder's part of the comparison.

    Attributes:
        pixels: uint8 (3, H, W), the reconstruction.
        caption: lines of text under it.
    """

    pixels: Tensor
    caption: Sequence[str]


def error_map(a: Tensor, b: Tensor) -> Image.Image:
    """Where two uint8 pictures (3, H, W) differ: black for equal, the lightest colour from 64 levels on."""
    levels = np.arange(256) / ERROR_AT_WHITE
    table = np.stack([np.interp(levels, _COLOUR_STOPS, channel) for channel in _COLOURS.T], axis=1)
    error = torch.empty(a.shape[1:], dtype=torch.uint8)
    for top in range(0, a.shape[1], _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        error[rows] = (a[:, rows].float() - b[:, rows].float()).abs().mean(dim=0).round().to(torch.uint8)
    picture = Image.fromarray(error.numpy(), "L")
    picture = _fit(picture, Image.Resampling.BOX)
    picture.putpalette(table.round().astype(np.uint8).tobytes())
    return picture.convert("RGB")


def _fit(picture: Image.Image, filter_: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Shrink what is larger than a panel; enlarge what is too small to be seen."""
    longest = max(picture.size)
    if longest > _MAX_PANEL:
        scale = _MAX_PANEL / longest
        size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
        return picture.resize(size, filter_, reducing_gap=2.0)
    factor = max(_MIN_PANEL // longest, 1)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _to_panel(pixels: Tensor) -> Image.Image:
    return _fit(Image.fromarray(pixels.permute(1, 2, 0).numpy(), "RGB"))


def compare(original: Tensor, caption: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """Draw the comparison.

    One column: input | reconstruction | error in a row. Several: the input, then a column for each, the reconstruction
    above its error. Costs a few copies of the picture; panels are at most 1536 pixels a side.

    Args:
        original: uint8 (3, H, W).
        caption: lines under the original.
        columns: what to set beside it.
    """
    error_caption = ("error, mean of channels", f"black 0, lightest {ERROR_AT_WHITE} of 255 and more")
    errors = [error_map(original, column.pixels) for column in columns]
    cells = [(_to_panel(original), caption)] + [(_to_panel(column.pixels), column.caption) for column in columns]
    if len(columns) == 1:
        return _draw_grid([[*cells, (errors[0], error_caption)]])
    blank = Image.new("RGB", (1, 1), _PAPER)
    return _draw_grid([cells, [(blank, ()), *((error, error_caption) for error in errors)]])


def _draw_grid(rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]]) -> Image.Image:
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
