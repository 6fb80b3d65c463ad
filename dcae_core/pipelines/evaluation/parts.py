"""An evaluation divided into parts, each measured once: by any number of processes, stopped and continued at will.

The division depends on the number of images and the batch size alone, and results are put together in the order of
the parts. So the number at the end is the same whoever measured what, and however often it was stopped.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcae_core.distributed import barrier, broadcast_object, is_main, rank, world_size
from dcae_core.errors import DataError
from dcae_core.files import make_directory, write_bytes
from dcae_core.pipelines.evaluation.inputs import ImageSource

_NUM_PARTS = 64  # wanted at least, so that processes share evenly ...
_LARGEST_PART = 1024  # ... and at most this many images are measured again after a stop

Measure = Callable[[Tensor], dict[str, Tensor]]
"""Measures of uint8 images (B, 3, H, W): per image (B, ...)."""
Advance = Callable[[int], None]


@dataclass
class Part:
    """What was measured on some images.

    Attributes:
        tensors: name -> one row for each good image.
        indices: (N,) int64, which images the rows belong to.
        damaged: a line for each image that could not be decoded.
    """

    tensors: dict[str, Tensor]
    indices: Tensor
    damaged: list[str] = field(default_factory=list)


def divide(count: int, batch_size: int) -> list[range]:
    """Split `count` images into parts of whole batches (the last one may be short)."""
    batches = min(count // (batch_size * _NUM_PARTS), _LARGEST_PART // batch_size)
    size = batch_size * max(1, batches)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class PartStore:
    """Finished parts on disk, each written whole or not at all.

    Args:
        directory: one for each evaluation; with processes on several machines, one that all of them see.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = make_directory(directory)

    def _path(self, number: int) -> Path:
        return self.directory / f"part_{number:06d}.safetensors"

    def save(self, number: int, part: Part) -> None:
        """Keep a finished part.

        Raises:
            ResourceError: the disk is full, or the directory cannot be written to.
        """
        tensors = {name: tensor.contiguous() for name, tensor in part.tensors.items()} | {"indices": part.indices}
        write_bytes(self._path(number), safetensors.torch.save(tensors, {"damaged": json.dumps(part.damaged)}))

    def load(self, number: int) -> Part:
        """Read a finished part.

        Raises:
            DataError: it is not there, or damaged.
        """
        try:
            with safe_open(self._path(number), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
                damaged = json.loads(file.metadata()["damaged"])
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self._path(number)} is missing or damaged: processes on several machines need a --work directory "
                "that all of them see; run the command again"
            ) from error
        return Part(tensors, tensors.pop("indices"), damaged)

    def is_finished(self, number: int) -> bool:
        """Whether a part is there and whole."""
        if not self._path(number).exists():
            return False
        try:
            self.load(number)
        except DataError:
            return False
        return True

    def remove(self) -> None:
        """Throw the parts away, once what they add up to is known."""
        shutil.rmtree(self.directory, ignore_errors=True)


def measure_parts(
    source: ImageSource, measure: Measure, store: PartStore, batch_size: int, advance: Advance
) -> Iterator[Part] | None:
    """Measure whatever is not measured yet, shared among the processes.

    Returns:
        In the main process all parts in order, read from disk one at a time; None in the others.

    Raises:
        DataError: a damaged image where none is allowed, or images of different sizes.
        ResourceError: the disk is full.
    """
    batch_size = min(batch_size, len(source))
    parts = divide(len(source), batch_size)
    pending = broadcast_object([number for number in range(len(parts)) if not store.is_finished(number)])
    shown = _Shown(len(source), advance)
    shown.add(len(source) - sum(len(parts[number]) for number in pending))
    for number in pending[rank() :: world_size()]:
        # The others are about as far with their parts as this process is with its own.
        part = _measure_part(source, measure, parts[number], batch_size, lambda n: shown.add(n * world_size()))
        store.save(number, part)
    barrier()
    shown.add(len(source))
    return (store.load(number) for number in range(len(parts))) if is_main() else None


class _Shown:
    """How far the progress is, never more than the whole."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._left = total
        self._advance = advance

    def add(self, count: int) -> None:
        step = min(count, self._left)
        self._left -= step
        if step:
            self._advance(step)


def _measure_part(source: ImageSource, measure: Measure, indices: range, batch_size: int, advance: Advance) -> Part:
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rows: dict[str, list[Tensor]] = {}
    good: list[int] = []
    damaged: list[str] = []
    for chosen, batch in zip(batches, source.batches(batches), strict=True):
        measured = measure(_pad(batch.images, batch_size))
        keep = torch.tensor([place for place in range(len(chosen)) if place not in batch.damaged], dtype=torch.int64)
        for name, tensor in measured.items():
            rows.setdefault(name, []).append(tensor[keep])
        good += [chosen[place] for place in keep.tolist()]
        damaged += batch.damaged.values()
        advance(len(chosen))
    return Part({name: torch.cat(tensors) for name, tensors in rows.items()}, torch.tensor(good), damaged)


def _pad(images: Tensor, batch_size: int) -> Tensor:
    """Repeat the last image up to a full batch: a network's float32 results move with the shape of its batch."""
    missing = batch_size - len(images)
    return torch.cat((images, images[-1:].expand(missing, -1, -1, -1))) if missing else images
