"""Tar shards: where each image lies and which class it has. The one reader of tar headers.

Headers are a stranger's: sizes are checked before they are followed, and what is no regular file of sane size is
refused, so that nothing is read but what lies in the file.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, Self

from dcae_core.data.images import IMAGE_SUFFIXES
from dcae_core.data.remote import is_url, open_remote
from dcae_core.errors import DataError
from dcae_core.limits import MAX_CLASSES, MAX_FILE_BYTES

_MAX_EXTENSION_BYTES = 1 << 20  # of a header that describes the next one: long names and the like
_EXTENSIONS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)
_CLASS_SUFFIX = ".cls"
_MAX_CLASS_BYTES = 64


class Member(NamedTuple):
    """One image in a shard: its name, where its bytes start, how many they are, and its class number as text."""

    name: str
    offset: int
    size: int
    label: str | None


class _Header(tarfile.TarInfo):
    """A header whose size is believed only where it can be true."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"{header.name} has a negative size")
        if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def read_shard(path: str) -> list[Member]:
    """The images of an uncompressed tar (a file, or a URL of fsspec), in its order; costs one small read per member.

    DataError where it is damaged, compressed, or holds no image or one that is no regular file of sane size.
    """
    images: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    try:
        with _open(path) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            for member in _members(archive, file):
                key, suffix = os.path.splitext(member.name)
                if suffix.lower() in IMAGE_SUFFIXES and not os.path.basename(key).startswith("."):
                    _require_plain(member)
                    images.append((member.name, member.offset_data, member.size))
                elif suffix == _CLASS_SUFFIX:
                    _require_plain(member)
                    labels[key] = _read_class(archive, member, path)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, IndexError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{path} is not a whole, uncompressed tar: {reason}; unpack a compressed one, copy a damaged one again"
        ) from error
    if not images:
        raise DataError(f"{path}: no image in this shard")
    return [Member(*image, labels.get(os.path.splitext(image[0])[0])) for image in images]


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    if is_url(path):
        with open_remote(path) as file:
            yield file
        return
    if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: opening a pipe would wait for whoever writes to it
        raise tarfile.ReadError("it is not a regular file")
    with open(path, "rb") as file:
        yield file


def _members(archive: tarfile.TarFile, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Every header, each proved to lie in the file, up to the zeros that end an archive."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    last = -1
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has read
        if member.size < 0 or member.offset_data <= last:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        if member.isreg() and not member.issparse() and member.offset_data + member.size > end:
            raise tarfile.ReadError(f"{member.name} is cut off")
        last = member.offset_data
        yield member
    if archive.offset >= end:  # an archive ends with blocks of zeros: without them some may be missing
        raise tarfile.ReadError("its end is cut off")
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"a header is damaged, {archive.offset:,} bytes from the start")


def _require_plain(member: tarfile.TarInfo) -> None:
    if member.issparse() or not member.isreg():
        kind = "stored sparsely" if member.issparse() else "a link" if member.issym() or member.islnk() else "no file"
        raise tarfile.ReadError(f"{member.name} is {kind}; images are read from regular files only")
    if member.size > MAX_FILE_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes; images are read up to {MAX_FILE_BYTES:,}")


def _read_class(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> str:
    file: Any = archive.extractfile(member)
    text = file.read(_MAX_CLASS_BYTES).decode("ascii", "replace").strip()
    if not (text.isascii() and text.isdecimal()):
        raise DataError(f"{path}/{member.name}: a class must be a number, not {text!r}")
    if int(text) >= MAX_CLASSES:
        raise DataError(f"{path}/{member.name}: class {text} is beyond the limit of {MAX_CLASSES:,} classes")
    return str(int(text))
