"""The stream of training crops: the order of the images, the crops, and batches split over processes and parts."""

import math
import signal
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcae_core.errors import DataError, SourceLostError


@lru_cache(maxsize=8)
def _permutation(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([*seed, epoch]).permutation(count)


class ImageOrder:
    """Position in the stream -> source and image in it.

    One source: every epoch is a fresh permutation of its images (8 bytes an image, for two epochs). Several: each
    position draws a source by its relative weight and an image of it uniformly. Seeds are not negative.
    """

    def __init__(self, seed: tuple[int, ...], counts: list[int], weights: list[float]) -> None:
        self._seed = seed
        self._counts = counts
        self._weights = np.asarray(weights) / np.sum(weights)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, image) at this position, from 0."""
        if len(self._counts) == 1:
            epoch, place = divmod(position, self._counts[0])
            return 0, int(_permutation(self._seed, epoch, self._counts[0])[place])
        generator = np.random.default_rng([*self._seed, position])
        source = int(generator.choice(len(self._counts), p=self._weights))
        return source, int(generator.integers(self._counts[source]))


_ATTEMPTS = 10


@dataclass(frozen=True)
class CropSettings:
    """How training crops are cut; every other one is mirrored with `flip`.

    Attributes:
        resolution: side of the square result, in pixels.
        scale: smallest and largest share of the image's area.
        aspect_ratio: smallest and largest width over height before the crop is made square.
    """

    resolution: int
    scale: tuple[float, float] = (0.25, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True


def choose_box(width: int, height: int, settings: CropSettings, generator: np.random.Generator) -> tuple[int, ...]:
    """A random box (left, upper, right, lower) inside an image.

    Area uniform in `scale`, aspect ratio log-uniform in `aspect_ratio`; the largest central box of an allowed ratio
    where ten attempts do not fit.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; the fallback as in torchvision RandomResizedCrop.
    """
    low, high = settings.aspect_ratio
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*settings.scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    w, h = max(w, 1), max(h, 1)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_crop(image: Image.Image | np.ndarray, settings: CropSettings, generator: np.random.Generator) -> np.ndarray:
    """A random resized crop (3, resolution, resolution) uint8, perhaps mirrored.

    Of an RGB image, or of its pixels (H, W, 3) uint8, of which only the crop is read.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    left, upper, right, lower = choose_box(width, height, settings, generator)
    if isinstance(image, Image.Image):
        region = image.crop((left, upper, right, lower))
    else:
        region = Image.fromarray(np.ascontiguousarray(image[upper:lower, left:right]), "RGB")
    side = settings.resolution
    pixels = np.asarray(region.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))
    if settings.flip and generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


_CROP_STREAM = 1  # tells the random numbers of crops from those of the order


class ImageCollection(Protocol):
    """Images that can be counted, named and read by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the image."""

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8. Raises DataError where it is damaged."""


@dataclass(frozen=True)
class Sample:
    """One crop, where it comes from, and what was found damaged on the way to it."""

    pixels: np.ndarray
    name: str
    damaged: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Batch:
    """What a process computes on at once.

    Attributes:
        pixels: (B, 3, R, R) uint8.
        damaged: lines about images that could not be decoded and were replaced.
        worker_seconds: time that the workers spent on it, added up.
    """

    pixels: Tensor
    names: tuple[str, ...]
    damaged: tuple[str, ...]
    worker_seconds: float


class CropStream(Dataset[Sample]):
    """The endless stream of crops: position -> sample, a function of the seed.

    With `skip_damaged`, a damaged image is replaced by the next good one of its source.
    """

    def __init__(
        self,
        collections: list[ImageCollection],
        weights: list[float],
        crops: CropSettings,
        seed: tuple[int, ...],
        skip_damaged: bool = True,
    ) -> None:
        self._collections = collections
        self._order = ImageOrder(seed, [len(collection) for collection in collections], weights)
        self._crops = crops
        self._seed = seed
        self._skip_damaged = skip_damaged

    def __getitem__(self, position: int) -> Sample:
        """The sample here; DataError if the image is damaged and none may take its place, or all of its source are."""
        start = time.perf_counter()
        source, index = self._order[position]
        pixels, name, damaged = self._read(self._collections[source], index)
        generator = np.random.default_rng([*self._seed, _CROP_STREAM, position])
        crop = random_crop(pixels, self._crops, generator)
        return Sample(crop, name, tuple(damaged), time.perf_counter() - start)

    def _read(self, collection: ImageCollection, index: int) -> tuple[np.ndarray, str, list[str]]:
        damaged: list[str] = []
        for attempt in range(len(collection)):
            candidate = (index + attempt) % len(collection)
            try:
                return collection.pixels(candidate), collection.name(candidate), damaged
            except SourceLostError:
                raise
            except DataError as error:
                if not self._skip_damaged:
                    raise
                damaged.append(str(error))
        raise DataError(f"none of the {len(collection)} images can be decoded; the first says: {damaged[0]}")


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided: as evenly as can be, so that pieces differ by one image at most.

    Attributes:
        batch_size: images per optimiser step over all processes; at least one for each process in each part.
        accumulation: parts that are computed one after the other, each shared by all processes.
    """

    batch_size: int
    accumulation: int = 1
    world_size: int = 1
    rank: int = 0

    @property
    def largest_piece(self) -> int:
        """Images that one process computes on at once, at most."""
        return self._start_of(1)

    def positions(self, step: int, part: int) -> list[int]:
        """Positions in the stream of what this process computes in a part of a step."""
        piece = part * self.world_size + self.rank
        first = step * self.batch_size
        return list(range(first + self._start_of(piece), first + self._start_of(piece + 1)))

    def _start_of(self, piece: int) -> int:
        return ceil(piece * self.batch_size / (self.accumulation * self.world_size))


def load_batches(stream: CropStream, plan: BatchPlan, steps: range, num_workers: int) -> Generator[Batch]:
    """Batches of the given steps: `plan.accumulation` for each.

    Close it where it may end early (`contextlib.closing`), so that no worker outlives what asked for its batches.
    Workers read ahead by two batches each: num_workers * 2 * largest_piece crops of memory.
    """
    loader = DataLoader(
        stream,
        batch_sampler=(plan.positions(step, part) for step in steps for part in range(plan.accumulation)),
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # a loader draws a number when it starts: not from the global generator
        worker_init_fn=_leave_signals_to_main if num_workers else None,
    )
    batches = iter(loader)
    try:
        yield from batches
    except DataError as error:
        kind = type(error)
        text = str(error).strip().splitlines()[-1].partition(f"{kind.__name__}: ")[2]
        raise kind(text or str(error)) from error
    finally:
        _end_workers(batches)


def _end_workers(batches: Iterator[Batch]) -> None:
    """Tell workers to end. They ignore the SIGTERM that Python sends at its end and then waits for."""
    end = getattr(batches, "_shutdown_workers", None)  # there is none where the main process reads by itself
    if end is not None:
        end()


def _leave_signals_to_main(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the main process decides what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _collate(samples: list[Sample]) -> Batch:
    return Batch(
        pixels=torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        names=tuple(sample.name for sample in samples),
        damaged=tuple(line for sample in samples for line in sample.damaged),
        worker_seconds=sum(sample.seconds for sample in samples),
    )
