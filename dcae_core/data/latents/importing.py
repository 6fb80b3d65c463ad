"""Take over latents that the published code wrote: a folder per class, one scaled .npy file per picture."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.latents.manifest import EncoderRecord, LatentDtype, Manifest, TransformRecord
from dcae_core.data.latents.shard import TORCH_DTYPES
from dcae_core.data.latents.writer import DatasetPlan, LatentDatasetWriter
from dcae_core.errors import DataError, UsageError

_DTYPES: dict[str, LatentDtype] = {"float16": "float16", "float32": "float32"}


def import_npy(
    source: Path,
    directory: Path,
    encoder: EncoderRecord,
    *,
    resolution: int,
    shard_size: int = 1024,
    advance: Callable[[int], object] | None = None,
) -> Manifest:
    """Turn `<source>/<class>/*.npy` (scaled latents, (C, h, w)) into a dataset of unscaled latents in `directory`.

    Classes are the sorted folder names; files are sorted inside them. The dtype stays that of the files (float16 or
    float32); the division by the scaling factor is done in float32. Holds one shard; interrupted, it continues.

    Args:
        source: the folder of class folders.
        directory: where the dataset is to lie.
        encoder: what made the latents: the files do not say. Its factor undoes the published scaling.
        resolution: side of the pictures that were encoded.
        shard_size: items per shard.
        advance: called with the number of items after each shard.

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
