"""Files behind fsspec URLs (s3, gs, hf, http, memory, ...): listed, opened and read without a copy on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from dcae_core.errors import DataError, DcaeError, DownloadError
from dcae_core.limits import MAX_FILE_BYTES

_BLOCK = 16 << 20


def is_url(path: str) -> bool:
    """Whether `path` names a file behind a file system of fsspec rather than one of this machine."""
    return "://" in path


@contextmanager
def explain_remote_errors(url: str) -> Iterator[None]:
    """Turn whatever a file system of fsspec raises (each has its own exceptions) into one line about `url`.

    DataError where there is no such file or protocol, DownloadError where it cannot be reached or read.
    """
    try:
        yield
    except DcaeError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file or folder") from error
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be opened: {first_line(error)}") from error
    except Exception as error:
        raise DownloadError(f"{url} cannot be read: {first_line(error)}") from error


def list_files(url: str) -> list[str]:
    """Every file below a folder, as paths relative to it, sorted; empty where there is none."""
    with explain_remote_errors(url):
        files, root = _open_file_system(url.rstrip("/"))
        prefix = root.rstrip("/") + "/"
        return sorted(path.removeprefix(prefix) for path in files.find(root))


@contextmanager
def open_remote(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading at any place; blocks are fetched as they are read."""
    with explain_remote_errors(url):
        files, path = _open_file_system(url)
        with files.open(path, "rb") as file:
            yield file


def read_whole(url: str, most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file; DataError where there are more than `most`, before they are read if its size is told."""
    content = bytearray()
    with open_remote(url) as file:
        told = getattr(file, "size", None) or 0
        while told <= most and len(content) <= most and (block := file.read(_BLOCK)):
            content += block
    if max(told, len(content)) > most:
        has = f"{told:,}" if told > most else f"more than {most:,}"
        raise DataError(f"{url} has {has} bytes; files of its kind are read up to {most:,}")
    return bytes(content)


def read_remote(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, in one request."""
    with explain_remote_errors(url):
        files, path = _open_file_system(url)
        content = bytes(files.cat_file(path, offset, offset + size))
        # A simple web server knows no ranges and sends the whole file.
        return content if len(content) <= size else content[offset : offset + size]


def size_of_remote(url: str) -> int:
    """Bytes of a file.

    Raises:
        DataError, DownloadError: see `explain_remote_errors`.
    """
    with explain_remote_errors(url):
        files, path = _open_file_system(url)
        return int(files.size(path))


def first_line(error: Exception) -> str:
    """What an exception says, on one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _open_file_system(url: str) -> tuple[Any, str]:
    import fsspec

    files, path = fsspec.core.url_to_fs(url)
    return files, str(path)
