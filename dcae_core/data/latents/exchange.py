"""Latent datasets from and to other layouts: the published .npy folders, LightningDiT's files, WebDataset tars."""

import io
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcae_core.data.latents.manifest import EncoderRecord, LatentDtype, Manifest, TransformRecord
from dcae_core.data.latents.reader import LatentDataset
from dcae_core.data.latents.shard import TORCH_DTYPES
from dcae_core.data.latents.writer import DatasetPlan, LatentDatasetWriter
from dcae_core.errors import DataError, UsageError
from dcae_core.files import make_directory, replace_file
from dcae_core.limits import MAX_CLASSES
from dcae_core.progress import Advance

_DTYPES: dict[str, LatentDtype] = {"float16": "float16", "float32": "float32"}
_SAFETENSORS_DTYPES: dict[str, LatentDtype] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def import_npy(
    source: Path,
    directory: Path,
    encoder: EncoderRecord,
    *,
    resolution: int,
    shard_size: int = 1024,
    advance: Advance | None = None,
) -> Manifest:
    """Turn `<source>/<class>/*.npy` (scaled latents, (C, h, w)) into a dataset of unscaled latents in `directory`.

    Classes are the sorted folder names; files are sorted inside them. The dtype stays that of the files (float16 or
    float32); the division by the scaling factor is done in float32. Holds one shard; interrupted, it continues.
    The files do not say what made them: `encoder` does, and its factor undoes the published scaling. `advance` is
    called with the number of items after each shard.

    Raises:
        DataError: there are no .npy files, one cannot be read, or shapes or dtypes differ.
        UsageError: `directory` holds something else, or `encoder` has no scaling factor.
        ResourceError: the disk is full, or the place cannot be written to.
    """
    classes = sorted(entry.name for entry in source.iterdir() if entry.is_dir()) if source.is_dir() else []
    files = [(path, label) for label, name in enumerate(classes) for path in sorted((source / name).glob("*.npy"))]
    scaling_factor = encoder.scaling_factor
    if scaling_factor is None:
        raise UsageError("published .npy latents are scaled; say by which scaling factor")
    if not files:
        raise DataError(f"{source} holds no <class>/<name>.npy files; give the folder that holds the class folders")
    first = _load(files[0][0])
    plan = DatasetPlan(
        encoder=encoder,
        transform=TransformRecord(resolution=resolution, crop="unknown"),
        encoding={"imported": "npy", "shard_size": shard_size},
        dtype=_DTYPES[str(first.dtype)],
        latent_shape=first.shape,
        classes=classes,
        num_shards=-(-len(files) // shard_size),
    )

    def read(first: int, last: int) -> "_Part":
        part = files[first:last]
        names = [path.relative_to(source).as_posix() for path, _ in part]
        latents = torch.stack(list(_unscaled(part, plan, scaling_factor)))
        return _Part(latents, torch.tensor([label for _, label in part]), names)

    return _write(directory, plan, len(files), shard_size, read, advance)


class _Part(NamedTuple):
    """What becomes one shard: unscaled latents, labels, and the names of the images."""

    latents: Tensor
    labels: Tensor
    names: list[str]


def _write(
    directory: Path,
    plan: DatasetPlan,
    num_images: int,
    shard_size: int,
    read: Callable[[int, int], _Part],
    advance: Advance | None,
) -> Manifest:
    """Write the shards that are not there yet; `read(first, last)` gives the images of one."""
    writer = LatentDatasetWriter(directory, plan)
    with writer.locked():
        writer.begin()
        for number, first in enumerate(range(0, num_images, shard_size)):
            last = min(first + shard_size, num_images)
            if not writer.is_complete() and writer.finished(number) is None:
                writer.write_shard(number, *read(first, last), damaged=[])
            if advance:
                advance(last - first)
        return writer.finish()


def _unscaled(files: list[tuple[Path, int]], plan: DatasetPlan, scaling_factor: float) -> Iterator[Tensor]:
    for path, _ in files:
        scaled = _load(path)
        if scaled.shape != plan.latent_shape or str(scaled.dtype) != plan.dtype:
            found, wanted = f"{scaled.dtype} {scaled.shape}", f"{plan.dtype} {plan.latent_shape}"
            raise DataError(f"{path} holds a latent of {found}, the first file one of {wanted}")
        raw = torch.from_numpy(scaled).float() / scaling_factor
        yield raw.to(TORCH_DTYPES[plan.dtype])


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 3 or str(array.dtype) not in _DTYPES:
        raise DataError(f"{path} is not one (C, h, w) latent in float16 or float32")
    return array


_LATENTS, _MIRRORED, _LABELS = "latents", "latents_flip", "labels"


def import_lightningdit(
    source: Path,
    directory: Path,
    encoder: EncoderRecord,
    *,
    resolution: int,
    shard_size: int = 1024,
    advance: Advance | None = None,
) -> Manifest:
    """Turn LightningDiT's `<source>/*.safetensors` into a dataset in `directory`; arguments as for `import_npy`.

    Each file holds unscaled `latents` (N, C, h, w), `labels` (N,) and, of the mirrored images, `latents_flip`: where
    it is there, items 2i and 2i + 1 are an image and its mirror image. Label k is called "k". Holds one shard.

    Raises:
        DataError: there is no such file, one is damaged, or they do not fit together.
        UsageError: `directory` holds something else.
        ResourceError: the disk is full, or the place cannot be written to.

    Source: `extract_features.py` and `datasets/img_latent_dataset.py`, hustvl/LightningDiT.
    """
    paths = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    if not paths:
        raise DataError(f"{source} holds no .safetensors files; give the folder that holds LightningDiT's latents")
    files = [_LightningFile(path) for path in paths]
    first = files[0]
    for other in files[1:]:
        if (other.shape, other.dtype, other.mirrored) != (first.shape, first.dtype, first.mirrored):
            raise DataError(f"{other.path} holds latents of another shape, number type or kind than {first.path}")
    starts = [0, *accumulate(file.count for file in files)]
    if starts[-1] == 0:
        raise DataError(f"the files in {source} hold no latents")
    plan = DatasetPlan(
        encoder=encoder,
        transform=TransformRecord(resolution=resolution, crop="unknown", flipped_copies=first.mirrored),
        encoding={"imported": "lightningdit", "shard_size": shard_size},
        dtype=first.dtype,
        latent_shape=first.shape,
        classes=[str(label) for label in range(1 + max(file.last_label() for file in files))],
        num_shards=-(-starts[-1] // shard_size),
    )

    def read(first: int, last: int) -> _Part:
        parts = []
        for number in range(bisect_right(starts, first) - 1, len(files)):
            if starts[number] < last:
                within = (max(first - starts[number], 0), min(last - starts[number], files[number].count))
                parts.append(files[number].read(*within))
        latents, labels, names = zip(*parts, strict=True)
        return _Part(torch.cat(latents), torch.cat(labels), [name for part in names for name in part])

    return _write(directory, plan, starts[-1], shard_size, read, advance)


class _LightningFile:
    """One file of LightningDiT's, whose header alone is read until latents are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                keys = set(file.keys())
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
                kind = file.get_slice(_LATENTS).get_dtype() if _LATENTS in keys else ""
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a readable safetensors file: {error}") from error
        latents, self.mirrored = shapes.get(_LATENTS, ()), _MIRRORED in keys
        fits = shapes.get(_LABELS) == latents[:1] and shapes.get(_MIRRORED, latents) == latents
        if len(latents) != 4 or 0 in latents[1:] or kind not in _SAFETENSORS_DTYPES or not fits:
            raise DataError(f"{path} does not hold LightningDiT's latents (N, C, h, w) and labels (N,)")
        self.count, self.shape, self.dtype = latents[0], latents[1:], _SAFETENSORS_DTYPES[kind]

    def last_label(self) -> int:
        """The highest label."""
        labels = self._slice(_LABELS, 0, self.count)
        if labels.is_floating_point() or (self.count and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES):
            raise DataError(f"{self.path} holds labels that are not numbers from 0 to {MAX_CLASSES - 1}")
        return int(labels.max()) if self.count else 0

    def read(self, first: int, last: int) -> _Part:
        """These images; with mirror images in between where there are any."""
        copies = [self._slice(key, first, last) for key in (_LATENTS, _MIRRORED)[: 1 + self.mirrored]]
        labels = self._slice(_LABELS, first, last).long().repeat_interleave(len(copies))
        names = [f"{self.path.stem}/{number:06d}" for number in range(first, last)]
        return _Part(torch.stack(copies, dim=1).flatten(0, 1), labels, names)

    def _slice(self, key: str, first: int, last: int) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                part: Tensor = file.get_slice(key)[first:last]
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path} is not a readable safetensors file: {error}") from error
        return part


_BATCH = 256


def export_npy(dataset: LatentDataset, directory: Path, advance: Advance | None = None) -> None:
    """Write one `<class>/<image name>.npy` of (C, h, w) float32 per item, multiplied by the scaling factor.

    That is what the published training reads. A mirrored copy is called `<image name>.flip.npy`; a dataset without
    classes is written straight into `directory`. Holds one batch of latents; costs one file per item. DataError where
    two images would get the same file.
    """
    scaling_factor = dataset.manifest.scaling_factor
    written: set[Path] = set()
    for name, latent, _ in _items(dataset):
        path = directory / f"{name}.npy"
        if path in written:
            raise DataError(f"two images of {dataset.store.where} are called {name}; .npy files cannot tell them apart")
        written.add(path)
        make_directory(path.parent)
        scaled = latent.float() * scaling_factor
        with replace_file(path) as file:
            np.save(file, scaled.numpy())
        if advance:
            advance(1)


def export_webdataset(
    dataset: LatentDataset,
    directory: Path,
    *,
    items_per_tar: int = 10_000,
    advance: Advance | None = None,
) -> None:
    """Write `000000.tar`, ... whose samples are `<item>.npy` (C, h, w) float32 unscaled and `<item>.cls`, the label.

    Equal datasets give equal tars: no times, no owners. Holds one batch of latents.
    """
    make_directory(directory)
    items = enumerate(_items(dataset))
    for first in range(0, len(dataset), items_per_tar):
        with (
            replace_file(directory / f"{first // items_per_tar:06d}.tar") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for _ in range(min(items_per_tar, len(dataset) - first)):
                number, (_, latent, label) = next(items)
                content = io.BytesIO()
                np.save(content, latent.float().numpy())
                _add(tar, f"{number:012d}.npy", content.getvalue())
                _add(tar, f"{number:012d}.cls", str(label).encode())
                if advance:
                    advance(1)


def _items(dataset: LatentDataset) -> Iterator[tuple[str, Tensor, int]]:
    """Each item's name without the image's suffix, unscaled latent, and label, in the dataset's order."""
    start = 0
    for number, count in enumerate(dataset.shard_counts.tolist()):
        names = dataset.names(number)
        for first in range(0, count, _BATCH):
            within = range(first, min(first + _BATCH, count))
            latents, labels = dataset.read(range(start + within.start, start + within.stop))
            for i, latent, label in zip(within, latents, labels.tolist(), strict=True):
                yield _item_name(names, i, dataset.manifest.copies), latent, label
        start += count


def _item_name(names: list[str], item: int, copies: int) -> str:
    image = PurePosixPath(names[item // copies])
    if image.is_absolute() or ".." in image.parts:
        raise DataError(f"an image of the dataset is called {image}; such a name is not written to")
    return str(image.with_suffix("")) + (".flip" if item % copies else "")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
