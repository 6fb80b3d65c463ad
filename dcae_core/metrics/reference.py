"""Reference statistics on disk: the published `.npz` layout, read and written, and ADM's reference batches."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dcae_core.errors import DataError
from dcae_core.files import sha256_of_file, write_bytes
from dcae_core.metrics.frechet import Gaussian

_IMAGES = "arr_0"


@dataclass(frozen=True)
class Reference:
    """What a reference file holds.

    Attributes:
        path: the file.
        sha256: of its bytes.
        gaussian: mean and covariance of Inception features.
        description: what else the file says: number of images, resolution, transform, weights (ours only).
        num_images: images that lie in the file (ADM's batches); 0 where it holds statistics alone.
    """

    path: Path
    sha256: str
    gaussian: Gaussian
    description: dict[str, str | int] = field(default_factory=dict)
    num_images: int = 0

    def images(self, ranges: Sequence[range]) -> Iterator[Tensor]:
        """The file's images of each range, uint8 (B, 3, H, W), read from disk one range at a time.

        Raises:
            DataError: the file ends early.
        """
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{_IMAGES}.npy") as member:
            shape, dtype = _read_array_header(member, self.path)
            start, item = member.tell(), int(np.prod(shape[1:])) * dtype.itemsize
            for indices in ranges:
                member.seek(start + indices.start * item)
                content = member.read(len(indices) * item)
                if len(content) < len(indices) * item:
                    raise DataError(f"{self.path} ends in the middle of its images: fetch the file again")
                batch = np.frombuffer(content, dtype).reshape(len(indices), *shape[1:])
                yield torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def _read_array_header(member: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read_header = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(member)
    if fortran_order or len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        raise DataError(f"{path}: its {_IMAGES} holds no images; expected uint8 (N, H, W, 3)")
    return shape, dtype


def _count_images(archive: zipfile.ZipFile, path: Path) -> int:
    if f"{_IMAGES}.npy" not in archive.namelist():
        return 0
    with archive.open(f"{_IMAGES}.npy") as member:
        return _read_array_header(member, path)[0][0]


def read_reference(path: Path) -> Reference:
    """Read reference statistics; nothing in the file is executed.

    Costs the two arrays (34 MB at 2048 features) and one pass over the file for its hash.

    Raises:
        DataError: the file is missing, damaged, or no reference.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such reference file; make one: dcae fid-ref --images DIR --out {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            num_images = _count_images(archive, path)
        with np.load(path, allow_pickle=False) as arrays:
            if not {"mu", "sigma"} <= set(arrays.files):
                raise DataError(f"{path} is no reference: it has no `mu` and `sigma`; make one with dcae fid-ref")
            mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in ("mu", "sigma"))
            described = [name for name in arrays.files if name not in ("mu", "sigma") and arrays[name].ndim == 0]
            description = {name: arrays[name].item() for name in described}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as an .npz of arrays ({error}): fetch or make the file again"
        ) from error
    mean = np.atleast_1d(mean.squeeze())
    _check(path, mean, covariance)
    return Reference(path, sha256_of_file(path), Gaussian(mean, covariance), description, num_images)


def _check(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
        raise DataError(f"{path}: mu {mean.shape} and sigma {covariance.shape} do not belong together")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: its statistics are not finite numbers (NaN): make the file again")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * max(1.0, float(np.abs(covariance).max()))):
        raise DataError(f"{path}: its sigma is no covariance, for it is not symmetric")


def write_reference(path: Path, gaussian: Gaussian, description: dict[str, str | int]) -> None:
    """Write statistics whole or not at all, as `mu` and `sigma` (what the published code reads) and a description.

    The same statistics give the same bytes.

    Raises:
        ResourceError: the file cannot be written.
    """
    buffer = io.BytesIO()
    extras: dict[str, Any] = {name: np.array(value) for name, value in description.items()}
    np.savez(buffer, mu=gaussian.mean, sigma=gaussian.covariance, **extras)
    write_bytes(path, buffer.getvalue())
