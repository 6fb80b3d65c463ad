"""Where images come from: files, folders, globs, lists, tars and parquet, in one order and opened one at a time."""

import errno
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

from dcae_core.data.images import (
    DEFAULT_MAX_PIXELS,
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    AlphaRule,
    open_image,
)
from dcae_core.data.parquet import PARQUET_SUFFIX, OtherTableError, is_parquet, is_parquet_read, read_image, read_rows
from dcae_core.data.remote import is_url, list_files, read_remote, read_whole
from dcae_core.data.tar import read_shard
from dcae_core.errors import DataError, ResourceError, SourceLostError, did_you_mean, printable
from dcae_core.files import near_paths
from dcae_core.limits import MAX_CLASSES, MAX_LIST_BYTES

_LIST_SUFFIXES = frozenset({".txt", ".lst"})
_SHARD_SUFFIXES = frozenset({".tar", PARQUET_SUFFIX})
_WHOLE_FILE = -1
_NO_CLASS = -1


class ImageReference(NamedTuple):
    """One image that was found, not yet read.

    Attributes:
        path: the file, or the shard it lies in: a tar or a parquet file.
        key: its path below the searched folder, or its name in the shard: what outputs are called after.
        label: index of its class in `ImageList.classes`, or None.
        offset: where its bytes start in the tar, or its row's number in the parquet file; -1 for a file of its own.
        size: how many bytes it has in the tar.
    """

    path: str
    key: str
    label: int | None = None
    offset: int = _WHOLE_FILE
    size: int = 0

    @property
    def name(self) -> str:
        """What messages call it: safe to print."""
        return printable(self.path if self.offset == _WHOLE_FILE else f"{self.path}/{self.key}")

    def open(
        self, *, apply_exif: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS, alpha: AlphaRule = "white"
    ) -> Image.Image:
        """Read and decode it, as `open_image` does.

        Raises:
            DataError: it is missing, damaged, too large, or not an image.
            SourceLostError: nothing is left where it was found.
            ResourceError: this process may open no more files.
        """
        try:
            source = self._read_bytes() if self.offset != _WHOLE_FILE or is_url(self.path) else self.path
            return open_image(source, name=self.name, apply_exif=apply_exif, max_pixels=max_pixels, alpha=alpha)
        except DataError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EMFILE, errno.ENFILE):
                raise ResourceError("too many open files; raise `ulimit -n` or take fewer workers") from error
            if not is_url(self.path) and _is_empty(self._place()):
                raise SourceLostError(
                    f"{error}, and nothing else is in {self._place() or os.curdir}: is its disk still mounted? "
                    "bring it back; the same command continues"
                ) from error
            raise

    def _place(self) -> str:
        """The folder that was searched, or that the file list or shard lies in."""
        below = self.offset == _WHOLE_FILE and self.path.endswith(os.sep + self.key)
        return self.path[: -len(self.key) - 1] if below else os.path.dirname(self.path)

    def _read_bytes(self) -> bytes:
        """Its bytes: of an image in a shard, or behind a URL."""
        if is_url(self.path):
            whole = self.offset == _WHOLE_FILE
            return read_whole(self.path) if whole else read_remote(self.path, self.offset, self.size)
        if is_parquet(self.path):
            return read_image(self.path, self.offset)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}") from error


def _is_empty(folder: str) -> bool:
    """Whether there is no such folder, or nothing in it: what an unmounted disk leaves."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return next(entries, None) is None
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE, errno.EACCES)


class LeftOut(NamedTuple):
    """What lies in a searched folder and should hold images, but cannot be read: a damaged shard, a closed folder.

    Attributes:
        path: where it lies.
        key: its path below the searched folder.
        error: what is wrong with it.
    """

    path: str
    key: str
    error: DataError


class _Found(NamedTuple):
    """As a reference, with the class still by name."""

    path: str
    key: str
    label: str | None
    offset: int = _WHOLE_FILE
    size: int = 0


class ImageList(Sequence[ImageReference]):
    """The images that were found, in a fixed order, and the names of their classes, none where nothing has a class.

    Held as two byte strings and a few arrays: about 100 bytes an image for usual path lengths, shared with the
    worker processes of a data loader (a million images: 100 MB once, not 500 MB in each worker). Names are safe
    to print. `empty_folders` lie beside those of the classes and hold no image, and so are no classes; `unread` counts
    by their suffix the images in searched folders of a kind that is not read; `left_out` is damaged.
    """

    def __init__(self, found: Iterable[_Found], unread: Counter[str], left_out: list[LeftOut]) -> None:
        self.empty_folders: list[str] = []
        self.unread, self.left_out = unread, left_out
        paths: list[str] = []
        path_numbers: list[int] = []
        keys, ends, labels, spans = bytearray(), [0], [], []
        numbers: dict[str, int] = {}
        numbered = True  # every class comes from a shard that has it as a number
        for item in found:
            numbered &= item.label is None or (item.offset != _WHOLE_FILE and item.label.isdecimal())
            if not paths or paths[-1] != _common(item):
                paths.append(_common(item))
            path_numbers.append(len(paths) - 1)
            keys += item.key.encode("utf-8", "surrogateescape")
            ends.append(len(keys))
            labels.append(_NO_CLASS if item.label is None else numbers.setdefault(item.label, len(numbers)))
            spans.append((item.offset, item.size))
        self._paths, self._path_numbers = paths, np.array(path_numbers, dtype=np.int32)
        self._keys, self._ends = bytes(keys), np.array(ends, dtype=np.int64)
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
        classes, order = _sort_classes(list(numbers), numbered)
        self.classes = [printable(name) for name in classes]
        renumbered = np.array([*order, _NO_CLASS], dtype=np.int32)  # the last one is for "none", index -1
        self._labels = renumbered[np.array(labels, dtype=np.int64)]

    def __len__(self) -> int:
        return len(self._path_numbers)

    @overload
    def __getitem__(self, index: int) -> ImageReference: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageReference]: ...
    def __getitem__(self, index: int | slice) -> ImageReference | list[ImageReference]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative indices and IndexError as for any sequence
        key = self._keys[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")
        path = self._paths[self._path_numbers[index]]
        offset, size = (int(value) for value in self._spans[index])
        label = int(self._labels[index])
        if offset == _WHOLE_FILE:
            path = os.path.join(path, key)
        return ImageReference(path, key, None if label == _NO_CLASS else label, offset, size)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32 class indices; -1 where an image has none."""
        return self._labels

    def notes(self) -> list[str]:
        """A line on every kind of file that is not read, and on each folder that is no class."""
        return [
            *describe_unread(self.unread),
            *(f"{folder} holds no image: it is no class" for folder in self.empty_folders),
        ]


def _common(item: _Found) -> str:
    """The part of the path that neighbours share: the shard, or the searched folder."""
    return item.path if item.offset != _WHOLE_FILE else item.path.removesuffix(item.key)


def _sort_classes(names: list[str], numbered: bool) -> tuple[list[str], list[int]]:
    """Class names in their final order, and for each of `names` its index there.

    Class numbers (tar shards) keep their value, so that 1000 classes stay 1000 where some are absent. Folder names are
    sorted as text, as the published code does: `100` comes before `2`.
    """
    if names and numbered:
        numbers = [int(name) for name in names]
        _refuse_too_many_classes(max(numbers) + 1)
        return [str(number) for number in range(max(numbers) + 1)], numbers
    _refuse_too_many_classes(len(names))
    classes = sorted(names)
    positions = {name: position for position, name in enumerate(classes)}
    return classes, [positions[name] for name in names]


def _refuse_too_many_classes(count: int) -> None:
    if count > MAX_CLASSES:
        raise DataError(f"the images have {count:,} classes, more than the limit of {MAX_CLASSES:,}")


def find_images(inputs: Iterable[str | Path], *, skip_damaged: bool = False) -> ImageList:
    """Find every image that `inputs` name: files, folders, globs, file lists, shards (rules: see the module).

    Costs one directory scan, for tar shards one small read per member, for parquet files the columns of names and
    labels; no image is opened. With `skip_damaged`, what cannot be read inside a folder is in the result's `left_out`,
    and the rest is there.

    Raises:
        DataError: an input does not exist, holds no image, or is, or without `skip_damaged` holds, a damaged shard.
    """
    left_out: list[LeftOut] = []

    def refuse(problem: LeftOut) -> None:
        raise problem.error

    places = [str(given) for given in inputs]
    on_problem = left_out.append if skip_damaged else refuse
    unread: Counter[str] = Counter()
    images = ImageList((found for given in places for found in _find(given, on_problem, unread)), unread, left_out)
    if left_out and not images:
        others = f" (and {len(left_out) - 1} more that cannot be read)" if left_out[1:] else ""
        raise DataError(f"{left_out[0].error}{others}")
    images.empty_folders = [folder for given in places for folder in _folders_beside(given, set(images.classes))]
    return images


def _folders_beside(given: str, classes: set[str]) -> list[str]:
    """The folders right below a searched one that are no classes, where others are."""
    if not os.path.isdir(given):
        return []
    with os.scandir(given) as entries:
        names = sorted(printable(entry.name) for entry in entries if _is_folder(entry) and entry.name[0] != ".")
    return [os.path.join(given, name) for name in names if name not in classes] if classes & set(names) else []


def describe_unread(unread: Counter[str]) -> list[str]:
    """One line about images of kinds that are not read, if there are any."""
    if not unread:
        return []
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
    packages = ["pillow-heif"] * bool(unread.keys() & HEIF_SUFFIXES) + ["pyarrow"] * (PARQUET_SUFFIX in unread)
    install = f"pip install {' '.join(packages)}, or " if packages else ""
    return [f"left out {kinds}: kinds of images that are not read; {install}convert them to JPEG or PNG"]


_OnProblem = Callable[[LeftOut], None]


def _find(given: str, on_problem: _OnProblem, unread: Counter[str]) -> Iterator[_Found]:
    if is_url(given):
        yield from _find_remote(given, on_problem)
    elif not os.path.lexists(given) and glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))
        if not matches:
            raise DataError(f"{given}: no file matches")
        for match in matches:
            try:
                yield from _find(match, on_problem, unread)
            except DataError as error:
                on_problem(LeftOut(match, os.path.basename(match), error))
    elif os.path.isdir(given):
        found_any = False
        problems: list[LeftOut] = []
        for found in _search_folder(given, problems.append, unread):
            found_any = True
            yield found
        for problem in problems:
            on_problem(problem)
        if not found_any and not problems:
            others = "".join(f"; {line}" for line in describe_unread(unread))
            raise DataError(f"{given}: no image in this folder (suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}){others}")
    elif not os.path.exists(given):
        raise DataError(f"{given}: {_why_missing(given)}")
    else:
        yield from _find_in_file(given)


def _why_missing(path: str) -> str:
    """Of a file that cannot be found: a link that leads nowhere is there, after all."""
    if os.path.islink(path):
        return "a link that leads to nothing"
    near = near_paths(Path(path))
    return "no such file or folder" + (f"; {did_you_mean(near, '')}" if near else "")


def _find_remote(url: str, on_problem: _OnProblem) -> Iterator[_Found]:
    """As for local places, without globs and file lists: an image, a tar shard, or a folder of both."""
    suffix = os.path.splitext(url)[1].lower()
    if suffix == ".tar":
        yield from _read_shard(url)
    elif suffix in IMAGE_SUFFIXES:
        yield _Found(url, os.path.basename(url), None)
    else:
        found_any = False
        for key in list_files(url):
            suffix = os.path.splitext(key)[1].lower()
            if any(part.startswith(".") for part in key.split("/")) or suffix not in {".tar", *IMAGE_SUFFIXES}:
                continue
            found_any = True
            path = f"{url.rstrip('/')}/{key}"
            label, separator, _ = key.partition("/")
            if suffix == ".tar":
                yield from _read_shard_in_folder(path, key, on_problem)
            else:
                yield _Found(path, key, label if separator else None)
        if not found_any:
            raise DataError(f"{url}: no image and no tar shard in this folder")


def _find_in_file(path: str) -> Iterator[_Found]:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _SHARD_SUFFIXES:
        yield from _read_shard(path)
    elif suffix in _LIST_SUFFIXES:
        yield from _read_list(path)
    else:
        yield _Found(path, os.path.basename(path), None)


def _search_folder(root: str, on_problem: _OnProblem, unread: Counter[str]) -> Iterator[_Found]:
    """Depth first, names sorted, files and folders together."""
    prefix = os.path.join(root, "")

    def search(folder: str, inside: frozenset[tuple[int, int]]) -> Iterator[_Found]:
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            problem = DataError(f"{folder} cannot be read: {error.strerror or error}")
            on_problem(LeftOut(folder, folder.removeprefix(prefix), problem))
            return
        here = (status.st_dev, status.st_ino)
        if here in inside:
            return
        for entry in visible:
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                yield from search(entry.path, inside | {here})
            elif suffix == PARQUET_SUFFIX and not is_parquet_read():
                unread[suffix] += 1
            elif suffix in _SHARD_SUFFIXES:
                yield from _read_shard_in_folder(entry.path, entry.path.removeprefix(prefix), on_problem)
            elif suffix in IMAGE_SUFFIXES:
                key = entry.path.removeprefix(prefix)
                label, separator, _ = key.partition(os.sep)
                yield _Found(entry.path, key, label if separator else None)
            elif suffix in UNREAD_SUFFIXES:
                unread[suffix] += 1

    yield from search(root, frozenset())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles is neither
        return False


def _read_list(path: str) -> Iterator[_Found]:
    folder = os.path.dirname(path)
    if not os.path.isfile(path):
        raise DataError(f"{path} is not a regular file, so it is no file list")
    if os.path.getsize(path) > MAX_LIST_BYTES:
        raise DataError(f"{path} is larger than {MAX_LIST_BYTES:,} bytes, the limit of file lists; cut it in parts")
    found_any = False
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without a byte-order mark
            for line in file:
                entry, _, label = line.rstrip("\r\n").partition("\t")
                if entry.strip() and not entry.startswith("#"):
                    found_any = True
                    where = os.path.join(folder, entry)
                    yield _Found(where, entry if not os.path.isabs(entry) else os.path.basename(entry), label or None)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a file list must be UTF-8 text, one path a line") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not found_any:
        raise DataError(f"{path}: this file list names no image; write one path a line")


def _read_shard(path: str) -> Iterator[_Found]:
    if is_parquet(path):
        for row in read_rows(path):
            yield _Found(path, row.name, row.label, row.number)
        return
    for name, offset, size, label in read_shard(path):
        yield _Found(path, name, label, offset, size)


def _read_shard_in_folder(path: str, key: str, on_problem: _OnProblem) -> Iterator[_Found]:
    try:
        yield from _read_shard(path)
    except OtherTableError:
        pass  # beside images, what is known about them
    except DataError as error:
        on_problem(LeftOut(path, key, error))


class DecodedOnDemand:
    """An `ImageCollection` that opens an image each time it is asked for."""

    def __init__(self, images: ImageList) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """What messages call the image."""
        return self._images[index].name

    def identity(self, index: int) -> str:
        """Its name with the size and age of its file: another image of the same name has another identity."""
        reference = self._images[index]
        try:
            status = os.stat(reference.path)
        except OSError as error:
            raise DataError(f"{reference.name} cannot be read: {error.strerror or error}") from error
        return f"{reference.name} {status.st_size} {status.st_mtime_ns}"

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, upright."""
        return np.asarray(self._images[index].open())
