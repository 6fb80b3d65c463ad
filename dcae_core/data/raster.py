"""Large images: pixels in memory or in a nameless file, and PNG files written in strips."""

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import BinaryIO, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcae_core.files import explain_write_errors

_MEMORY_BYTES = 1 << 25  # 11 million pixels
_STRIP_BYTES = 1 << 20
_CHANNELS = 3


class Raster:
    """An 8-bit RGB image, filled from top to bottom and then read by rows.

    Holds 3 bytes a pixel: in memory up to 32 MiB, beyond that in a file without a name in `directory` (which has to
    exist), which is gone with the process however that ends. Reading costs the rows that are asked for. ResourceError
    where the file cannot be written.
    """

    def __init__(self, height: int, width: int, directory: Path) -> None:
        self.height, self.width = height, width
        self._directory = directory
        self._file: BinaryIO = io.BytesIO()
        if height * width * _CHANNELS > _MEMORY_BYTES:
            with explain_write_errors(directory):
                self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 - lives as long as this

    @classmethod
    def of_image(cls, image: Image.Image, directory: Path) -> Self:
        """A copy of an RGB image."""
        raster = cls(image.height, image.width, directory)
        for top, bottom in raster.strips():
            strip = bytearray(image.crop((0, top, image.width, bottom)).tobytes())
            raster.append(_as_rows(strip, image.width))
        return raster

    def append(self, rows: Tensor) -> None:
        """Add the next rows: uint8 (3, n, W)."""
        assert rows.dtype == torch.uint8
        with explain_write_errors(self._directory):
            self._file.seek(0, io.SEEK_END)
            self._file.write(rows.permute(1, 2, 0).contiguous().numpy().data)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom`, without the last: uint8 (3, bottom - top, W), in memory of the form (n, W, 3)."""
        pixels = bytearray((bottom - top) * self.width * _CHANNELS)
        self._file.seek(top * self.width * _CHANNELS)
        length = self._file.readinto(pixels)  # type: ignore[attr-defined]
        assert length == len(pixels), "read before it was filled"
        return _as_rows(pixels, self.width)

    def strips(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Ranges of rows of about 1 MiB that make up the image, all but the last a multiple of so many rows."""
        rows = max(_STRIP_BYTES // (self.width * _CHANNELS * multiple), 1) * multiple
        return ((top, min(top + rows, self.height)) for top in range(0, self.height, rows))

    def image(self, shrink: int = 1) -> Image.Image:
        """The image as an RGB image, shrunk by a whole factor; costs 4 bytes for each pixel of the result."""
        image = Image.new("RGB", (ceil(self.width / shrink), ceil(self.height / shrink)))
        for top, bottom in self.strips(shrink):
            strip = self.rows(top, bottom).permute(1, 2, 0).numpy()
            image.paste(Image.fromarray(strip, "RGB").reduce(shrink), (0, top // shrink))
        return image


def _as_rows(pixels: bytearray, width: int) -> Tensor:
    return torch.frombuffer(pixels, dtype=torch.uint8).view(-1, width, _CHANNELS).permute(2, 0, 1)


MAKER = ("Software", "dcae")  # a text in every PNG that we write of somebody's image, by which we know our own again
_MAKER_CHUNK = b"tEXt", "\0".join(MAKER).encode()
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB = (8, 2, 0, 0, 0)  # bit depth, colour type, compression, filter method, not interlaced
_PAETH = 4
_PIXEL = 3  # bytes
_LOOKED_AT = 512  # bytes of a PNG; the text stands before its pixels
_COMPRESSION = 4  # half the time of the default 6, for a few percent of size


def write_png(image: Raster, file: BinaryIO) -> None:
    """Write an image; costs some strips of it. A failure is an OSError."""
    file.write(_SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", image.width, image.height, *_EIGHT_BIT_RGB))
    _write_chunk(file, *_MAKER_CHUNK)
    compressor = zlib.compressobj(_COMPRESSION, memLevel=9, strategy=zlib.Z_FILTERED)
    above = np.zeros((1, image.width * _PIXEL), np.uint8)
    for top, bottom in image.strips():
        rows = image.rows(top, bottom).permute(1, 2, 0).flatten(1).numpy()
        _write_chunk(file, b"IDAT", compressor.compress(_filter_rows(rows, above).data))
        above = rows[-1:]
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def is_own_png(path: Path) -> bool:
    """Whether a file is a PNG that says that we wrote it."""
    with open(path, "rb") as file:
        return b"".join(_MAKER_CHUNK) in file.read(_LOOKED_AT)


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))


def _filter_rows(rows: NDArray[np.uint8], above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each byte less what Paeth expects there: (n, 1 + bytes of a row), the filter's number before each row."""
    up = np.concatenate([above, rows[:-1]]).astype(np.int16)
    left, up_left = np.zeros_like(up), np.zeros_like(up)
    left[:, _PIXEL:], up_left[:, _PIXEL:] = rows[:, :-_PIXEL], up[:, :-_PIXEL]
    to_left, to_up = np.abs(up - up_left), np.abs(left - up_left)
    to_up_left = np.abs(left + up - 2 * up_left)
    expected = np.where(to_up <= to_up_left, up, up_left)
    expected = np.where((to_left <= to_up) & (to_left <= to_up_left), left, expected)
    filtered = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _PAETH
    np.subtract(rows, expected, out=filtered[:, 1:], casting="unsafe")
    return filtered
