"""Turn a latent dataset into what other programs read: the published folders of .npy files, WebDataset tars."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from dcae_core.data.latents.reader import LatentDataset
from dcae_core.errors import DataError
from dcae_core.files import make_directory, replace_file

_BATCH = 256


def export_npy(dataset: LatentDataset, directory: Path, advance: Callable[[int], object] | None = None) -> None:
    """Write one `<class>/<picture name>.npy` of (C, h, w) float32 per item, multiplied by the scaling factor.

    That is what the published training reads. A mirrored copy is called `<picture name>.flip.npy`; a dataset without
    classes is written straight into `directory`. Holds one batch of latents; costs one file per item.

    Raises:
        DataError: two pictures would get the same file.
        ResourceError: the disk is full, or the place cannot be written to.
    """
    scaling_factor = dataset.manifest.scaling_factor
    written: set[Path] = set()
    for name, latent, _ in _items(dataset):
        path = directory / f"{name}.npy"
        if path in written:
            raise DataError(
                f"two pictures of {dataset.store.where} are called {name}; .npy files cannot tell them apart"
            )
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
    advance: Callable[[int], object] | None = None,
) -> None:
    """Write `000000.tar`, ... whose samples are `<item>.npy` (C, h, w) float32 unscaled and `<item>.cls`, the label.

    Equal datasets give equal tars: no times, no owners. Holds one batch of latents.

    Raises:
        ResourceError: the disk is full, or the place cannot be written to.
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
    """Each item's name without the picture's suffix, unscaled latent, and label, in the dataset's order."""
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
    picture = PurePosixPath(names[item // copies])
    if picture.is_absolute() or ".." in picture.parts:
        raise DataError(f"a picture of the dataset is called {picture}; such a name is not written to")
    return str(picture.with_suffix("")) + (".flip" if item % copies else "")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
