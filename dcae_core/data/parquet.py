"""Parquet files as the Hugging Face hub keeps image datasets: a row an image, {bytes, path}, perhaps with a label.

Read by pyarrow (extra `parquet`), a row group at a time and only the columns that are asked for.
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import Any, NamedTuple

from dcae_core.errors import DataError
from dcae_core.limits import MAX_CLASSES, MAX_FILE_BYTES

PARQUET_SUFFIX = ".parquet"
_MAX_GROUP_BYTES = 1 << 30  # of a row group, whose images are in memory together
_NUM_KEPT_GROUPS = 2  # reading ahead goes from one to the next
_USUAL_NAME = "image"


class OtherTableError(DataError):
    """A parquet file without a column of images."""


class Row(NamedTuple):
    """One image: its name, the number of its row, and its class as text."""

    name: str
    number: int
    label: str | None


class _Layout(NamedTuple):
    """What a file's own description says.

    Attributes:
        image: name of the column with images.
        label: of that with classes, where there is one.
        starts: number of the first row of each row group, and at the end how many rows there are.
    """

    image: str
    label: str | None
    starts: tuple[int, ...]


def is_parquet(path: str) -> bool:
    """Whether a file is one by its name."""
    return path.lower().endswith(PARQUET_SUFFIX)


def is_parquet_read() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def read_rows(path: str) -> Iterator[Row]:
    """The images of a file in its order; reads names and labels, no image.

    The column is the one called `image`, or the only one of its kind; classes are whole numbers from 0 on, or names,
    in a column `label`. A name that a row lacks is made of the file's and the row's number.

    Raises:
        OtherTableError: it has no column of images.
        DataError: it is damaged, has several such columns, or pyarrow is not installed.
    """
    layout = _layout(path, _age(path))
    stem = os.path.splitext(os.path.basename(path))[0]
    for group, start in enumerate(layout.starts[:-1]):
        columns = [f"{layout.image}.path"] + ([layout.label] if layout.label is not None else [])
        with _explained(path):
            table = _open(path).read_row_group(group, columns=columns, use_threads=False)
            names = [(image or {}).get("path") for image in table[layout.image].to_pylist()]
            labels = table[layout.label].to_pylist() if layout.label is not None else [None] * len(names)
        for place, (name, label) in enumerate(zip(names, labels, strict=True)):
            number = start + place
            yield Row(name or f"{stem}-{number:06d}", number, _class(label, path, number))
    if layout.starts[-1] == 0:
        raise DataError(f"{path}: no image in this parquet file")


def read_image(path: str, number: int) -> bytes:
    """The bytes of one row.

    Costs decoding the images' column of its whole row group, which then stays for its neighbours, two groups at most.

    Raises:
        DataError: the file is damaged or has changed, or the row holds no bytes.
    """
    age = _age(path)
    starts = _layout(path, age).starts
    if not 0 <= number < starts[-1]:
        raise DataError(f"{path} has no row {number}: it has changed since it was looked at; start again")
    group = bisect_right(starts, number) - 1
    with _one_at_a_time:  # threads that read neighbours wait for the first of them
        images = _images(path, age, group)
    with _explained(path):
        content = images[number - starts[group]].as_py()
    if content is None:
        raise DataError(
            f"{path}: row {number} names an image and holds none; write the dataset with its images embedded"
        )
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path}: row {number} has {len(content):,} bytes; images are read up to {MAX_FILE_BYTES:,}")
    return bytes(content)


_one_at_a_time = threading.Lock()


@lru_cache(maxsize=_NUM_KEPT_GROUPS)
def _images(path: str, age: tuple[int, int], group: int) -> Any:
    """The images' bytes of a row group, as pyarrow holds them; `age` tells a file from one of the same name."""
    column = _layout(path, age).image
    with _explained(path):
        file = _open(path)
        # Not column by column: of a damaged file pyarrow's description of a column ends the process.
        size = file.metadata.row_group(group).total_byte_size
        if size > _MAX_GROUP_BYTES:
            raise DataError(
                f"{path}: row group {group} has {size:,} bytes, more than the limit of {_MAX_GROUP_BYTES:,}; write it "
                "anew with smaller row groups"
            )
        table = file.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)
        return table[column].combine_chunks().flatten()[0]


@lru_cache(maxsize=1024)
def _layout(path: str, age: tuple[int, int]) -> _Layout:
    with _explained(path):
        file = _open(path)
        schema, details = file.schema_arrow, file.metadata
        counts = [details.row_group(group).num_rows for group in range(details.num_row_groups)]
        found = [field.name for field in schema if _is_image(field.type)]
        names = list(schema.names)
    image = _USUAL_NAME if _USUAL_NAME in found else found[0] if len(found) == 1 else None
    if not found:
        raise OtherTableError(
            f"{path} has no column of images, which are {{bytes, path}}; it has {', '.join(names) or 'none at all'}"
        )
    if image is None:
        raise DataError(f"{path} has several columns of images, {', '.join(found)}; call the one to read {_USUAL_NAME}")
    return _Layout(image, "label" if "label" in names else None, tuple(accumulate(counts, initial=0)))


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if not types.is_struct(kind):
        return False
    found = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    wanted = {"bytes": (types.is_binary, types.is_large_binary), "path": (types.is_string, types.is_large_string)}
    return all(name in found and any(check(found[name]) for check in checks) for name, checks in wanted.items())


def _class(label: object, path: str, number: int) -> str | None:
    """As text; Hugging Face writes -1 where it is not known."""
    if label is None or (isinstance(label, int) and label < 0):
        return None
    if isinstance(label, str):
        return label
    if not isinstance(label, int) or isinstance(label, bool) or label >= MAX_CLASSES:
        raise DataError(
            f"{path}: row {number} has the class {label!r}; a number below {MAX_CLASSES:,} or a name is one"
        )
    return str(label)


def _age(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def _open(path: str) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path} is read by pyarrow, which is not installed: pip install 'dcae[parquet]'") from error
    except Exception as error:  # whatever pyarrow raises on bytes that are not its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a whole parquet file: {reason}; copy or download it again") from error
