"""Where the images of an evaluation come from."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcae_core.data.images import AlphaRule, center_crop_adm
from dcae_core.data.read_ahead import read_ahead
from dcae_core.data.sources import ImageReference, find_images
from dcae_core.errors import DataError, SourceLostError, printable
from dcae_core.metrics.reference import Reference
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings, draw_classes
from dcae_core.pipelines.sample_directory import find_samples


def sample_pack_directory() -> Path:
    """The photographs, in the installed package or in `examples/` of a source checkout; DataError if there are none."""
    package = Path(str(files("dcae_core")))
    for candidate in (package / "shipped_photographs", package.parent / "examples" / "photographs"):
        if candidate.is_dir():
            return candidate
    raise DataError("the sample pack is not part of this installation; give images: dcae eval --images DIR")


_DECODING_THREADS = 8
_ENLARGED = "dcae enlarged"  # a mark on a decoded image


@dataclass
class ImageBatch:
    """Some images in order: uint8 (B, 3, H, W).

    `damaged`: place in the batch -> a line, for each image that could not be decoded and is black instead.
    `enlarged`: places of the images that are smaller than the square that was cut from them.
    """

    images: Tensor
    damaged: dict[int, str] = field(default_factory=dict)
    enlarged: set[int] = field(default_factory=set)


class ImageSource(Protocol):
    """A fixed number of images of one size, read or made by number."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What reports call an image."""

    def batches(self, ranges: Sequence[range]) -> Iterator[ImageBatch]:
        """One batch for each range of image numbers."""


class ImageFiles:
    """Images from files and tar shards, decoded by a few threads while the batch before is measured.

    With `resolution`, cut to ADM's centre crop; without, as they are, all of one size. With `skip_damaged`, goes on
    without images that cannot be decoded. DataError if not one can be. `alpha` says what becomes of
    transparency: composed on white, or dropped as the published code does.
    """

    def __init__(
        self,
        images: Sequence[ImageReference],
        resolution: int | None,
        skip_damaged: bool = True,
        alpha: AlphaRule = "white",
    ) -> None:
        self._alpha: AlphaRule = alpha
        self._images = images
        self._resolution = resolution
        self._skip_damaged = skip_damaged
        self.size, self._pattern = self._first_size()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Its path below the searched folder."""
        return printable(self._images[index].key)

    def batches(self, ranges: Sequence[range]) -> Iterator[ImageBatch]:
        """Read them in order, one batch ahead; DataError at a damaged image where none is allowed, or another size."""
        threads = min(_DECODING_THREADS, os.cpu_count() or 1)
        wanted = (index for indices in ranges for index in indices)
        largest = max(map(len, ranges), default=0)
        images = read_ahead(wanted, self._try_to_open, num_ahead=largest, num_threads=threads)
        with closing(images):
            for indices in ranges:
                yield self._stack(indices, islice(images, len(indices)))

    def _stack(self, indices: range, images: Iterable[Image.Image | DataError]) -> ImageBatch:
        width, height = self.size
        batch = ImageBatch(torch.zeros(len(indices), 3, height, width, dtype=torch.uint8))
        for place, image in enumerate(images):
            if isinstance(image, Image.Image) and _ENLARGED in image.info:
                batch.enlarged.add(place)
            if isinstance(image, DataError):
                if not self._skip_damaged:
                    raise image
                batch.damaged[place] = str(image)
                continue
            if image.size != self.size:
                raise DataError(
                    f"images of different sizes: {self._pattern} is {width}x{height}, "
                    f"{self._images[indices[place]].name} {image.width}x{image.height}; "
                    "give --resolution N to cut all to one size"
                )
            batch.images[place] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return batch

    def _try_to_open(self, index: int) -> Image.Image | DataError:
        try:
            # As stored: the published code does not turn images as their EXIF block says.
            image = self._images[index].open(apply_exif=False, alpha=self._alpha)
            if self._resolution is None:
                return image
            cut = center_crop_adm(image, self._resolution)
            if min(image.size) < self._resolution:
                cut.info[_ENLARGED] = True
            return cut
        except SourceLostError:
            raise
        except DataError as error:
            return error

    def _first_size(self) -> tuple[tuple[int, int], str]:
        """(width, height) of all images, and the name of the one it was read from."""
        if self._resolution is not None:
            return (self._resolution, self._resolution), ""
        damaged = None
        for index in range(len(self._images)):
            image = self._try_to_open(index)
            if isinstance(image, Image.Image):
                return image.size, self._images[index].name
            damaged = damaged or image
        raise DataError(f"not one of {len(self._images)} images can be decoded; the first says: {damaged}")


class ReferenceImages:
    """The images that lie in a reference batch; DataError if it holds statistics alone."""

    def __init__(self, reference: Reference) -> None:
        if reference.num_images == 0:
            raise DataError(
                f"{reference.path} holds statistics alone; precision, recall, KID and --frechet compare with images: "
                "give ADM's reference batch or a folder"
            )
        self._reference = reference
        height, width = next(reference.images([range(1)])).shape[-2:]
        self.size = (width, height)

    def __len__(self) -> int:
        return self._reference.num_images

    def name(self, index: int) -> str:
        """Its number in the file."""
        return f"{self._reference.path.name} {index}"

    def batches(self, ranges: Sequence[range]) -> Iterator[ImageBatch]:
        """Read them from the file; DataError if it ends early."""
        return map(ImageBatch, self._reference.images(ranges))


class GeneratedSamples:
    """Images that a diffusion model makes: sample i depends on the seed and on i alone.

    Labels of the `num` samples are drawn as published.
    """

    def __init__(self, pipeline: DiffusionPipeline, num: int, settings: SampleSettings, batch_size: int) -> None:
        self._pipeline = pipeline
        self._classes = draw_classes(num, pipeline.config.num_classes, settings.seed)
        self._settings = settings
        self._batch_size = min(batch_size, num)
        ratio = pipeline.autoencoder.spatial_compression_ratio
        height, width = (side * ratio for side in pipeline.config.latent_size)
        self.size = (width, height)

    def __len__(self) -> int:
        return len(self._classes)

    def name(self, index: int) -> str:
        """Its number and class, as `dcae sample` names files."""
        return f"{index:05d}_c{self._classes[index]}"

    def batches(self, ranges: Sequence[range]) -> Iterator[ImageBatch]:
        """Make them; each range must lie within one batch. CheckpointError if samples are not finite."""
        size = self._batch_size
        needed = {indices.start // size for indices in ranges}
        made = self._pipeline.generate_batches(
            self._classes, self._settings, batch_size=size, skip=lambda number: number not in needed
        )
        for indices, batch in zip(ranges, made, strict=True):
            first = batch.number * size
            yield ImageBatch(batch.pixels[indices.start - first : indices.stop - first])


def names_images(place: str) -> bool:
    """Whether a reference is one of images rather than a file of statistics."""
    path = Path(place)
    return path.is_dir() or path.suffix.lower() in (".parquet", ".tar", ".txt", ".lst") or glob.has_magic(place)


def identity_of(images: Sequence[ImageReference]) -> list[tuple[str, int, int, int]]:
    """What changes when an image is replaced: path, place in its shard, size, time of change. One stat an image."""
    identity = []
    for image in images:
        status = os.stat(image.path) if os.path.exists(image.path) else None
        size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
        identity.append((image.name, image.offset, size, time))
    return identity


class Found(NamedTuple):
    """The images of an evaluation; lines about `damaged` tar shards that were left out, and other notes."""

    images: Sequence[ImageReference]
    damaged: list[str]
    notes: list[str]


def find_once(inputs: list[str], skip_damaged: bool) -> Found:
    """The images that are named, each file once however often it is, with a note if that happened.

    Of a directory of `dcae sample` these are its samples: not the grid, nor what else may lie there.
    """
    places = [str(place) for given in inputs for place in find_samples(given) or (given,)]
    images = find_images(places, skip_damaged=skip_damaged)
    damaged = [str(left_out.error) for left_out in images.left_out]
    seen: set[tuple[str, int]] = set()
    repeated = set()
    for index, image in enumerate(images):
        place = (os.path.realpath(image.path), image.offset)
        if place in seen:
            repeated.add(index)
        seen.add(place)
    if not repeated:
        return Found(images, damaged, images.notes())
    once = [image for index, image in enumerate(images) if index not in repeated]
    note = f"{len(repeated)} images are named more than once; each file is counted once"
    return Found(once, damaged, [*images.notes(), note])
