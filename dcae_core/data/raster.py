"""A picture of any size as rows of 8-bit pixels: a small one in memory, a large one in a file that nobody sees."""

import io
import tempfile
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import BinaryIO, Self, cast

import torch
from PIL import Image
from torch import Tensor

from dcae_core.files import explain_write_errors

_MEMORY_BYTES = 1 << 25  # 11 million pixels
_STRIP_BYTES = 1 << 20
_CHANNELS = 3


class Raster:
    """An 8-bit RGB picture, filled from top to bottom and then read by rows.

    Holds 3 bytes a pixel: in memory up to 32 MiB, beyond that in a file without a name, which is gone with the process
    however that ends. Reading costs the rows that are asked for.

    Args:
        height: in pixels.
        width: in pixels.
        directory: where the file of a large picture lies; it has to exist.

    Raises:
        ResourceError: the directory cannot be written to.
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
        """A copy of an RGB image.

        Raises:
            ResourceError: the disk is full.
        """
        raster = cls(image.height, image.width, directory)
        for top, bottom in raster.strips():
            strip = bytearray(image.crop((0, top, image.width, bottom)).tobytes())
            raster.append(_as_rows(strip, image.width))
        return raster

    def append(self, rows: Tensor) -> None:
        """Add the next rows: uint8 (3, n, W).

        Raises:
            ResourceError: the disk is full.
        """
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
        """Ranges of rows of about 1 MiB that make up the picture, all but the last a multiple of so many rows."""
        rows = max(_STRIP_BYTES // (self.width * _CHANNELS * multiple), 1) * multiple
        return ((top, min(top + rows, self.height)) for top in range(0, self.height, rows))

    def image(self, shrink: int = 1) -> Image.Image:
        """The picture as an RGB image, shrunk by a whole factor; costs 4 bytes for each pixel of the result."""
        image = Image.new("RGB", (ceil(self.width / shrink), ceil(self.height / shrink)))
        for top, bottom in self.strips(shrink):
            strip = self.rows(top, bottom).permute(1, 2, 0).numpy()
            image.paste(Image.fromarray(strip, "RGB").reduce(shrink), (0, top // shrink))
        return image


def _as_rows(pixels: bytearray, width: int) -> Tensor:
    return torch.frombuffer(pixels, dtype=torch.uint8).view(-1, width, _CHANNELS).permute(2, 0, 1)
