"""Where the images of an evaluation come from."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcae_core.data.images import center_crop_adm
from dcae_core.data.sources import PictureReference, find_pictures
from dcae_core.errors import DataError
from dcae_core.metrics.reference import Reference
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings, draw_classes


def sample_pack_directory() -> Path:
    """The photographs: inside the installed package, or in `examples/` of a source checkout.

    Raises:
        DataError: this installation has none.
    """
    package = Path(str(files("dcae_core")))
    for candidate in (package / "shipped_photographs", package.parent / "examples" / "photographs"):
        if candidate.is_dir():
            return candidate
    raise DataError("the sample pack is not part of this installation; give pictures: dcae eval --images DIR")


_DECODING_THREADS = 8


@dataclass
class PictureBatch:
    """Some pictures in order.

    Attributes:
        pictures: uint8 (B, 3, H, W).
        damaged: place in the batch -> a line, for each picture that could not be decoded and is black instead.
    """

    pictures: Tensor
    damaged: dict[int, str] = field(default_factory=dict)


class PictureSource(Protocol):
    """A fixed number of pictures of one size, read or made by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What reports call a picture."""

    def batches(self, ranges: Sequence[range]) -> Iterator[PictureBatch]:
        """One batch for each range of picture numbers."""


class PictureFiles:
    """Pictures from files and tar shards, decoded by a few threads while the batch before is measured.

    Args:
        pictures: at least one.
        resolution: side of the ADM centre crop; None takes pictures as they are, all of one size.
        skip_damaged: go on without pictures that cannot be decoded.

    Raises:
        DataError: not one of the pictures can be decoded.
    """

    def __init__(self, pictures: Sequence[PictureReference], resolution: int | None, skip_damaged: bool = True) -> None:
        self._pictures = pictures
        self._resolution = resolution
        self._skip_damaged = skip_damaged
        self._size, self._pattern = self._first_size()

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        """Its path below the searched folder."""
        return self._pictures[index].key

    def batches(self, ranges: Sequence[range]) -> Iterator[PictureBatch]:
        """Read them in order, one batch ahead.

        Raises:
            DataError: a damaged picture where none is allowed, or pictures of different sizes.
        """
        threads = min(_DECODING_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as ahead:
            waiting = [ahead.submit(self._read, indices, readers) for indices in ranges[:1]]
            for following in [*ranges[1:], None]:
                batch = waiting.pop().result()
                if following is not None:
                    waiting.append(ahead.submit(self._read, following, readers))
                yield batch

    def _read(self, indices: range, readers: ThreadPoolExecutor) -> PictureBatch:
        width, height = self._size
        batch = PictureBatch(torch.zeros(len(indices), 3, height, width, dtype=torch.uint8))
        for place, picture in enumerate(readers.map(self._try_to_open, indices)):
            if isinstance(picture, DataError):
                if not self._skip_damaged:
                    raise picture
                batch.damaged[place] = str(picture)
                continue
            if picture.size != self._size:
                raise DataError(
                    f"pictures of different sizes: {self._pattern} is {width}x{height}, "
                    f"{self._pictures[indices[place]].name} {picture.width}x{picture.height}; "
                    "give --resolution N to cut all to one size"
                )
            batch.pictures[place] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return batch

    def _try_to_open(self, index: int) -> Image.Image | DataError:
        try:
            # As stored: the published code does not turn pictures as their EXIF block says.
            picture = self._pictures[index].open(apply_exif=False)
            return picture if self._resolution is None else center_crop_adm(picture, self._resolution)
        except DataError as error:
            return error

    def _first_size(self) -> tuple[tuple[int, int], str]:
        """(width, height) of all pictures, and the name of the one it was read from."""
        if self._resolution is not None:
            return (self._resolution, self._resolution), ""
        damaged = None
        for index in range(len(self._pictures)):
            picture = self._try_to_open(index)
            if isinstance(picture, Image.Image):
                return picture.size, self._pictures[index].name
            damaged = damaged or picture
        raise DataError(f"not one of {len(self._pictures)} pictures can be decoded; the first says: {damaged}")


class ReferencePictures:
    """The pictures that lie in a reference batch.

    Raises:
        DataError: it holds statistics alone.
    """

    def __init__(self, reference: Reference) -> None:
        if reference.num_pictures == 0:
            raise DataError(
                f"{reference.path} holds statistics alone; precision, recall and KID compare with pictures: "
                "give ADM's reference batch"
            )
        self._reference = reference

    def __len__(self) -> int:
        return self._reference.num_pictures

    def name(self, index: int) -> str:
        """Its number in the file."""
        return f"{self._reference.path.name} {index}"

    def batches(self, ranges: Sequence[range]) -> Iterator[PictureBatch]:
        """Read them from the file.

        Raises:
            DataError: the file ends early.
        """
        return map(PictureBatch, self._reference.pictures(ranges))


class GeneratedSamples:
    """Pictures that a diffusion model makes: sample i depends on the seed and on i alone.

    Args:
        pipeline: the model.
        num: how many samples; their labels are drawn as published.
        settings: how to sample.
        batch_size: samples at once.
    """

    def __init__(self, pipeline: DiffusionPipeline, num: int, settings: SampleSettings, batch_size: int) -> None:
        self._pipeline = pipeline
        self._classes = draw_classes(num, pipeline.config.num_classes, settings.seed)
        self._settings = settings
        self._batch_size = min(batch_size, num)

    def __len__(self) -> int:
        return len(self._classes)

    def name(self, index: int) -> str:
        """Its number and class, as `dcae sample` names files."""
        return f"{index:05d}_c{self._classes[index]}"

    def batches(self, ranges: Sequence[range]) -> Iterator[PictureBatch]:
        """Make them; each range must lie within one batch.

        Raises:
            ResourceError: a batch does not fit into memory.
            CheckpointError: the samples are not finite.
        """
        size = self._batch_size
        needed = {indices.start // size for indices in ranges}
        made = self._pipeline.generate_batches(
            self._classes, self._settings, batch_size=size, skip=lambda number: number not in needed
        )
        for indices, batch in zip(ranges, made, strict=True):
            first = batch.number * size
            yield PictureBatch(batch.pixels[indices.start - first : indices.stop - first])


def identity_of(pictures: Sequence[PictureReference]) -> list[tuple[str, int, int, int]]:
    """What changes when a picture is replaced: path, place in its shard, size, time of change. One stat a picture."""
    identity = []
    for picture in pictures:
        status = os.stat(picture.path) if os.path.exists(picture.path) else None
        size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
        identity.append((picture.name, picture.offset, size, time))
    return identity


def find_once(images: list[str]) -> tuple[Sequence[PictureReference], list[str]]:
    """The pictures that are named, each file once however often it is, and a line about it if that happened.

    Raises:
        DataError: there are none, or a name stands for nothing.
    """
    pictures = find_pictures(images)
    seen: set[tuple[str, int]] = set()
    repeated = set()
    for index, picture in enumerate(pictures):
        place = (os.path.realpath(picture.path), picture.offset)
        if place in seen:
            repeated.add(index)
        seen.add(place)
    if not repeated:
        return pictures, []
    once = [picture for index, picture in enumerate(pictures) if index not in repeated]
    return once, [f"{len(repeated)} pictures are named more than once; each file is counted once"]
