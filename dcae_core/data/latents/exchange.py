"""Latent datasets from and to other layouts: the published .npy folders, WebDataset tars."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.latents.manifest import EncoderRecord, LatentDtype, Manifest, TransformRecord
from dcae_core.data.latents.reader import LatentDataset
from dcae_core.data.latents.shard import TORCH_DTYPES
from dcae_core.data.latents.writer import DatasetPlan, LatentDatasetWriter
from dcae_core.errors import DataError, UsageError
from dcae_core.files import make_directory, replace_file
from dcae_core.progress import Advance

_DTYPES: dict[str, LatentDtype] = {"float16": "float16", "float32": "float32"}


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
    if encoder.scaling_factor is None:
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
    writer = LatentDatasetWriter(directory, plan)
    writer.begin()
    for number in range(plan.num_shards):
        part = files[number * shard_size : (number + 1) * shard_size]
        if not writer.is_complete() and writer.finished(number) is None:
            latents = torch.stack(list(_unscaled(part, plan, encoder.scaling_factor)))
            names = [path.relative_to(source).as_posix() for path, _ in part]
            writer.write_shard(number, latents, torch.tensor([label for _, label in part]), names, damaged=[])
        if advance:
            advance(len(part))
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
