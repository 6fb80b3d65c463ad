"""Reference statistics on disk: the published `.npz` layout, read and written, and ADM's reference batches."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcae_core.errors import DataError
from dcae_core.files import sha256_of_file, write_bytes
from dcae_core.metrics.frechet import Gaussian
from dcae_core.metrics.inception import RESIZE_RULES, ResizeRule
from dcae_core.metrics.npz import REAL_NUMBERS, ArrayHeader, Npz, open_npz

_IMAGES = "arr_0"
_ADM_NAME = "VIRTUAL_"
_SPATIAL = ("mu_s", "sigma_s")
_MAX_FEATURES = 1 << 13  # Inception's are 2048
_MAX_SIDE = 1 << 14  # of an image in a batch, pixels
_MAX_DESCRIPTION_BYTES = 1 << 16
_DESCRIBING = REAL_NUMBERS + "U"  # text


@dataclass(frozen=True)
class Reference:
    """What a reference file holds.

    Attributes:
        sha256: of its bytes.
        gaussian: mean and covariance of Inception features.
        spatial: the same of its spatial features, where the file has them (`mu_s`, `sigma_s`, as ADM's).
        description: what else the file says: number of images, resolution, transform, weights (ours only).
        num_images: images that lie in the file (ADM's batches); 0 where it holds statistics alone.
        resize: the rule by which its images became Inception's input: what a file of ours says; for ADM's files, known
            by their `mu_s` and `sigma_s` or by their name, that of TensorFlow 1; for others the published code's.
    """

    path: Path
    sha256: str
    gaussian: Gaussian
    description: dict[str, str | int] = field(default_factory=dict)
    num_images: int = 0
    resize: ResizeRule = "half_pixel"
    spatial: Gaussian | None = None

    def images(self, ranges: Sequence[range]) -> Iterator[Tensor]:
        """The file's images of each range, uint8 (B, 3, H, W), read one range at a time; DataError if it ends early."""
        with open_npz(self.path) as arrays, ExitStack() as opened:
            header = arrays.header(_IMAGES)
            item = math.prod(header.shape[1:])
            member = opened.enter_context(arrays.open(_IMAGES))
            for indices in ranges:
                start = header.start + indices.start * item
                if start < member.tell():
                    # Seeking back is wrong after the end of a member in some Pythons (3.12.1).
                    opened.close()
                    member = opened.enter_context(arrays.open(_IMAGES))
                member.seek(start)
                content = member.read(len(indices) * item)
                if len(content) < len(indices) * item:
                    raise DataError(f"{self.path} ends in the middle of its images: fetch the file again")
                batch = np.frombuffer(content, np.uint8).reshape(len(indices), *header.shape[1:])
                yield torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())


def _count_images(arrays: Npz, path: Path) -> int:
    if _IMAGES not in arrays.names:
        return 0
    header = arrays.header(_IMAGES)
    is_images = len(header.shape) == 4 and header.shape[3] == 3 and header.dtype == np.uint8
    if not is_images or header.fortran_order or min(header.shape) < 1 or max(header.shape[1:]) > _MAX_SIDE:
        raise DataError(f"{path}: its {_IMAGES} holds no images; expected uint8 (N, H, W, 3), sides up to {_MAX_SIDE}")
    return header.shape[0]


def read_reference(path: Path) -> Reference:
    """Read reference statistics; nothing in the file is executed, and shapes are known before values are read.

    Costs its arrays (34 MB at 2048 features, as much again for spatial ones) and one pass over the file for its hash.
    DataError where the file is missing, damaged, or no reference.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such reference file, nor a folder of images; "
            f"make one: dcae fid-ref --images DIR --out {path.with_suffix('.npz')}"
        )
    sha256, before = sha256_of_file(path), path.stat()
    with open_npz(path) as arrays:
        num_images = _count_images(arrays, path)
        if not {"mu", "sigma"} <= set(arrays.names):
            raise DataError(f"{path} is no reference: it has no `mu` and `sigma`; make one with dcae fid-ref")
        gaussian = _read_gaussian(arrays, path, "mu", "sigma")
        has_spatial = set(_SPATIAL) <= set(arrays.names)
        spatial = _read_gaussian(arrays, path, *_SPATIAL) if has_spatial else None
        description = {
            name: arrays.read(name, _MAX_DESCRIPTION_BYTES, _DESCRIBING).item()
            for name in arrays.names
            if name not in ("mu", "sigma", *_SPATIAL, _IMAGES) and _describes(arrays.header(name))
        }
        resize = _resize_of(path, description, arrays.names)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} changed while it was read; run the command again")
    return Reference(path, sha256, gaussian, description, num_images, resize, spatial)


def _read_gaussian(arrays: Npz, path: Path, mean_name: str, covariance_name: str) -> Gaussian:
    limit = 8 * _MAX_FEATURES
    mean = np.atleast_1d(arrays.read(mean_name, limit).astype(np.float64).squeeze())
    covariance = arrays.read(covariance_name, limit * _MAX_FEATURES).astype(np.float64)
    _check(path, mean, covariance, f"{mean_name} {mean.shape} and {covariance_name} {covariance.shape}")
    return Gaussian(mean, covariance)


def _resize_of(path: Path, description: dict[str, str | int], arrays: Sequence[str]) -> ResizeRule:
    """By which rule the images of a file were resized."""
    said = description.get("resize")
    for rule, text in RESIZE_RULES.items():
        if said == text:
            return rule
    if said is not None:
        raise DataError(f"{path} says that its images were resized by an unknown rule: {str(said)[:80]!r}")
    # Source: guided-diffusion `evaluations/README.md`: its files have spatial statistics, or names like VIRTUAL_*.npz.
    of_adm = set(_SPATIAL) <= set(arrays) or path.name.upper().startswith(_ADM_NAME)
    return "tensorflow" if of_adm else "half_pixel"


def _describes(header: ArrayHeader) -> bool:
    return header.shape == () and header.num_bytes <= _MAX_DESCRIPTION_BYTES and header.dtype.kind in _DESCRIBING


def _check(path: Path, mean: np.ndarray, covariance: np.ndarray, named: str) -> None:
    if mean.ndim != 1 or mean.size == 0 or covariance.shape != (mean.size, mean.size):
        raise DataError(f"{path}: {named} do not belong together")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: its statistics are not finite numbers (NaN): make the file again")
    slack = 1e-6 * max(1.0, float(np.abs(covariance).max()))
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=slack):
        raise DataError(f"{path}: its sigma is no covariance, for it is not symmetric")
    variances = np.diag(covariance)
    deviations = np.sqrt(variances.clip(0))
    if variances.min() < -slack or (np.abs(covariance) > np.outer(deviations, deviations) * 1.001 + slack).any():
        raise DataError(f"{path}: its sigma is no covariance, for it has variances below 0")


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
