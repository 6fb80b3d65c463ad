"""Images decoded once, shrunk and kept as plain pixels, so that training only has to cut crops out of them."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dcae_core.data.sources import DecodedOnDemand
from dcae_core.errors import DataError, SourceLostError
from dcae_core.files import make_directory, replace_directory
from dcae_core.progress import ProgressCallback

_PIXELS, _INDEX = "pixels.bin", "index.json"


class DecodedCache:
    """An `ImageCollection` in two files: all pixels one after the other, memory-mapped, and an index.

    Reading an image costs no decoding and, of its pixels, only the pages that are touched. DataError at damaged files.
    """

    def __init__(self, directory: Path) -> None:
        try:
            index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
            self._names: list[str] = index["names"]
            self._shapes: list[list[int]] = index["shapes"]
            self.damaged: list[str] = index["damaged"]
            self._pixels = np.memmap(directory / _PIXELS, dtype=np.uint8, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{directory} is a damaged cache of images ({error}); remove it") from error
        sizes = [height * width * 3 for height, width in self._shapes]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if self._offsets[-1] != len(self._pixels):
            raise DataError(f"{directory} is a damaged cache of images (cut short); remove it")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """What messages call the image."""
        return self._names[index]

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, still on the disk where it has not been read yet."""
        height, width = self._shapes[index]
        start = int(self._offsets[index])
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)


def open_decoded_cache(
    images: DecodedOnDemand,
    directory: Path,
    shorter_side: int,
    *,
    skip_damaged: bool = True,
    progress: ProgressCallback = lambda done, total: None,
) -> DecodedCache:
    """The cache of these images, filled if it is not there yet: one decoding of each image, in this process.

    Each set of images and each size has its own place in `directory`. Larger images are shrunk to `shorter_side`.
    With `skip_damaged`, what cannot be decoded is left out.

    Raises:
        DataError: a damaged image, or not a single good one.
        ResourceError: the disk is full or the directory cannot be written to.
    """
    names = [images.name(index) for index in range(len(images))]
    identities = [images.identity(index) for index in range(len(images))]
    key = hashlib.sha256(json.dumps([identities, shorter_side]).encode()).hexdigest()[:16]
    place = make_directory(directory) / key
    if not (place / _INDEX).is_file():
        with replace_directory(place) as partial:
            _fill(images, names, partial, shorter_side, skip_damaged, progress)
    return DecodedCache(place)


def _fill(
    images: DecodedOnDemand,
    names: list[str],
    directory: Path,
    shorter_side: int,
    skip_damaged: bool,
    progress: ProgressCallback,
) -> None:
    kept: list[str] = []
    shapes: list[tuple[int, int]] = []
    damaged: list[str] = []
    with open(directory / _PIXELS, "wb") as file:
        for index, name in enumerate(names):
            try:
                pixels = _shrink(images.pixels(index), shorter_side)
            except SourceLostError:
                raise
            except DataError as error:
                if not skip_damaged:
                    raise
                damaged.append(str(error))
            else:
                file.write(pixels.tobytes())
                kept.append(name)
                shapes.append(pixels.shape[:2])
            progress(index + 1, len(names))
    if not kept:
        raise DataError(f"none of the {len(names)} images can be decoded; the first says: {damaged[0]}")
    index_text = json.dumps({"names": kept, "shapes": shapes, "damaged": damaged})
    (directory / _INDEX).write_text(index_text, encoding="utf-8")


def _shrink(pixels: np.ndarray, shorter_side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = shorter_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(pixels, "RGB").resize(size, Image.Resampling.LANCZOS))
