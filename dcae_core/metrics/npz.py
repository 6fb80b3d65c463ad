"""The arrays of an `.npz` file that a stranger may have made: known by their headers before their values are read."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from dcae_core.errors import DataError

REAL_NUMBERS = "fiub"

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SUFFIX = ".npy"
_MAX_MEMBERS = 1000


@dataclass(frozen=True)
class ArrayHeader:
    """What an array says of itself; the type of its values is never Python objects.

    `fortran_order`: whether the first index runs fastest. `start`: where its values start in the unpacked bytes.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open `.npz`: names, headers, and the values of those arrays that are asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        entries = archive.infolist()
        if len(entries) > _MAX_MEMBERS:
            raise DataError(f"{path} holds {len(entries):,} arrays; a reference has a few")
        self._entries = {entry.filename.removesuffix(_SUFFIX): entry for entry in entries}

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return list(self._entries)

    def header(self, name: str) -> ArrayHeader:
        """The header of one array, or DataError; its values, as many as it says, are in the file."""
        with self.open(name) as member:
            reader = _HEADER_READERS.get(npy.read_magic(member))
            if reader is None:
                raise DataError(f"{self._path}: {name} has a header of an unknown version")
            shape, fortran_order, dtype = reader(member)
            header = ArrayHeader(shape, fortran_order, dtype, member.tell())
        if min(shape, default=0) < 0 or dtype.hasobject:
            raise DataError(f"{self._path} cannot be read: {name} is no array of numbers")
        if header.start + header.num_bytes != self._entries[name].file_size:
            raise DataError(f"{self._path}: {name} holds more or less than its header says; fetch the file again")
        return header

    def read(self, name: str, max_bytes: int, kinds: str = REAL_NUMBERS) -> np.ndarray:
        """The values of one array, if it is of one of these kinds (numpy's letters).

        DataError where it is larger than `max_bytes`, of another kind, or damaged.
        """
        header = self.header(name)
        if header.num_bytes > max_bytes:
            raise DataError(f"{self._path}: {name} has {header.num_bytes:,} bytes; up to {max_bytes:,} are read")
        if header.dtype.kind not in kinds:
            raise DataError(f"{self._path}: {name} is {header.dtype}; expected real numbers")
        with self.open(name) as member:
            content = member.read(header.start + header.num_bytes + 1)[header.start :]  # reading to the end proves it
        if len(content) != header.num_bytes:
            raise DataError(f"{self._path}: {name} ends early; fetch the file again")
        array = np.frombuffer(content, header.dtype)
        return array.reshape(header.shape, order="F" if header.fortran_order else "C")

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """The unpacked bytes of one array, to be read from the start.

        DataError where it is encrypted, or compressed in an unknown way.
        """
        entry = self._entries[name]
        if entry.flag_bits & 1:
            raise DataError(f"{self._path}: {name} is encrypted")
        if entry.compress_type not in _COMPRESSIONS:
            raise DataError(f"{self._path}: {name} is compressed in a way that .npz files are not")
        with self._archive.open(entry) as member:
            yield member


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """Open an `.npz`; nothing is read but its directory.

    DataError, inside the body too, where the file is no such archive, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Npz(path, archive)
    except DataError:
        raise
    except Exception as error:  # headers are Python literals, which can be wrong in every way that Python knows
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an .npz of arrays ({reason[:200]}): fetch or make the file again"
        ) from error
