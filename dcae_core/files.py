"""Files that are either whole or absent, and checksums that say which bytes they hold.

Checkpoints, latent shards and run directories all write through this room, so that a kill, a crash or a full
disk at any moment leaves the file that was there before, or none, and never half of one.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dcae_core.errors import DcaeError, ResourceError, UsageError, near_names, printable

_PARTIAL_SUFFIX, _REPLACED_SUFFIX = ".partial", ".replaced"
_NOTHING_FREE = 1 << 20  # bytes: room for no file that matters


def _explain(error: OSError, path: Path) -> ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"the disk is full: could not write {path}; free some room and run the command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResourceError(f"no permission to write {path}; choose another output directory")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return ResourceError(f"could not write {path}: a file is in the way; choose another output directory")
    if error.errno == errno.EISDIR:
        return ResourceError(f"could not write {path}: a directory is in the way; move it")
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return ResourceError(f"could not lock {path}: its file system has no locks; choose a directory on another one")
    return ResourceError(f"could not write {path}: {error.strerror or error}")


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below `path` (disk full, no permission) into a ResourceError."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def cache_directory(kind: str = "") -> Path:
    """Where dcae caches things of one kind, or all of them: below DCAE_CACHE, or its part of the user's cache."""
    own = os.environ.get("DCAE_CACHE")
    users = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(users or Path.home() / ".cache") / "dcae") / kind


def make_directory(path: Path) -> Path:
    """Create `path` and its parents; return it.

    Raises:
        ResourceError: it cannot be created, or something that is not a directory is in the way.
    """
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def prove_writable(path: Path) -> None:
    """Find out before the work, and not after, that `path` cannot be written; creates its directory, leaves no file.

    Raises:
        ResourceError: it cannot.
    """
    make_directory(path.parent)
    with explain_write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def flush_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut (no effect where directories cannot be flushed)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@contextmanager
def _recognise_full_disk(directory: Path) -> Iterator[None]:
    """Libraries that write files themselves (torch.save, safetensors) keep the system's reason to themselves."""
    try:
        yield
    except (DcaeError, OSError):
        raise
    except Exception as error:
        if shutil.disk_usage(directory).free > _NOTHING_FREE:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; on success flush it and rename it over `path`, on failure remove it.

    ResourceError as `explain_write_errors`, here and in the functions below.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL_SUFFIX}")
    with explain_write_errors(path):
        try:
            with open(partial, "wb") as file, _recognise_full_disk(path.parent):
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            flush_directory(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield a fresh directory beside `path` to fill; on success flush it and rename it to `path`.

    An existing `path` is replaced only once the new directory is complete.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL_SUFFIX}")
    with explain_write_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with _recognise_full_disk(partial):
                yield partial
            # safetensors makes files that their owner alone can read; they get what mkdir gave the directory.
            permissions = partial.stat().st_mode & 0o666
            for file in partial.rglob("*"):
                if file.is_file():
                    file.chmod(permissions)
                    with open(file, "r+b") as handle:  # Windows flushes only what may be written
                        os.fsync(handle.fileno())
            flush_directory(partial)
            replaced = path.with_name(f".{path.name}.{os.getpid()}{_REPLACED_SUFFIX}")
            if path.exists():
                os.replace(path, replaced)
            os.replace(partial, path)
            flush_directory(path.parent)
            _remove(replaced)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Remove a directory, first out of the way under another name, so that a kill cannot leave half of it."""
    doomed = path.with_name(f".{path.name}{_REPLACED_SUFFIX}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half written or half removed; only where no process is writing now.

    What was moved aside for its successor, by a process killed before it put that in place, gets its name back.
    """
    for leftover in directory.glob(f".*{_REPLACED_SUFFIX}"):
        name, _, process = leftover.name[1:].removesuffix(_REPLACED_SUFFIX).rpartition(".")
        if name and process.isdecimal() and not (directory / name).exists():
            leftover.rename(directory / name)
    for suffix in (_PARTIAL_SUFFIX, _REPLACED_SUFFIX):
        for leftover in directory.glob(f".*{suffix}"):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, in_use: str | None, *, stays: bool = True) -> Iterator[None]:
    """Hold a file against every other process; the lock goes with this one, however that ends.

    Args:
        path: of the lock, made if it is not there.
        in_use: what to tell where another process holds it; None waits until it does not.
        stays: leave the file where it is; False removes it at the end.

    Raises:
        UsageError: another process holds it.
        ResourceError: it cannot be written, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    holder = FileLock(path, timeout=-1 if in_use is None else 0, fallback_to_soft=False)  # files alone outlive a kill
    with explain_write_errors(path):
        try:
            holder.acquire()
        except Timeout as error:
            raise UsageError(in_use) from error
    try:
        yield
    finally:
        if not stays:
            with suppress(OSError):  # Windows removes no file that is held; there the release does
                path.unlink()
        holder.release()


@contextmanager
def lock_directory(directory: Path, advice: str) -> Iterator[None]:
    """Hold a directory against every other process that asks for it; made if it is not there, left as it was.

    UsageError, with `advice` on what to do, where another process holds it; ResourceError as `lock`.
    """
    make_directory(directory)
    with lock(directory / ".lock", f"{directory} is being written by another {advice}", stays=False):
        yield


def open_for_reading(path: str | Path) -> int:
    """A descriptor for `read_at` and `read_into`. Raises OSError as `os.open`."""
    binary = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
    at_once = getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for whoever writes to it
    return os.open(path, os.O_RDONLY | binary | at_once)


_one_seek_at_a_time = threading.Lock()


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset` on, fewer at the end of the file; any number of threads may share the descriptor."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _one_seek_at_a_time:  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` (contiguous) from `offset` on; how many bytes were there. Threads as in `read_at`."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    content = read_at(descriptor, buffer.nbytes, offset)
    buffer.cast("B")[: len(content)] = content
    return len(content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replace_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def near_paths(path: Path) -> list[Path]:
    """What lies where a path that does not exist leads to, and is called nearly the same; names are cheap to print.

    Names are compared with and without their suffixes, which alone would make all of a kind alike.
    """
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return []
    by_stem: dict[str, list[str]] = {}
    for name in sorted(map(printable, beside)):
        by_stem.setdefault(Path(name).stem, []).append(name)
    alike = [name for stem in near_names(path.stem, by_stem) for name in by_stem[stem]]
    return [path.parent / name for name in near_names(path.name, alike)]


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
