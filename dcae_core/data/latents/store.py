"""Where a dataset's shards lie: a local directory, or any fsspec URL behind a local cache of whole shards."""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dcae_core.data.latents.manifest import ShardRecord
from dcae_core.data.remote import explain_remote_errors, first_line, is_url
from dcae_core.errors import DataError, DownloadError, UsageError, did_you_mean
from dcae_core.files import cache_directory, lock, make_directory, near_paths, replace_file, sha256_of_file

DEFAULT_CACHE_BYTES = 64 << 30
_BLOCK = 1 << 20
_ATTEMPTS = 3

_log = logging.getLogger(__name__)


class ShardStore(Protocol):
    """A place that shards are read from."""

    where: str

    def read(self, name: str) -> bytes:
        """The whole content of a small file such as the manifest."""

    def check_presence(self, shards: Iterable[ShardRecord]) -> None:
        """Refuse a dataset whose shards are not all there, as far as that is cheap to know."""

    def checksum(self, shard: ShardRecord) -> str:
        """SHA-256 of the bytes that lie there now, read in blocks and kept nowhere."""

    def fetch(self, shard: ShardRecord) -> Path:
        """A local file that holds the shard; waits until it is there."""

    def prefetch(self, shards: Iterable[ShardRecord]) -> None:
        """Start to fetch shards that will be wanted soon, and return at once."""


class LocalStore:
    """Shards in a directory of this machine (or a mounted file system)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.where = str(directory)

    def read(self, name: str) -> bytes:  # noqa: D102
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            near = [] if self.directory.exists() else near_paths(self.directory)
            raise _unreadable(f"{self.where}/{name}", error, near) from error

    def check_presence(self, shards: Iterable[ShardRecord]) -> None:
        """One `stat` per shard; DataError if one is missing, or longer or shorter than the manifest says."""
        for shard in shards:
            path = self.fetch(shard)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _unreadable(str(path), error) from error
            if size != shard.bytes:
                raise DataError(f"{path} has {size} bytes, the manifest says {shard.bytes}; restore it or encode again")

    def checksum(self, shard: ShardRecord) -> str:  # noqa: D102
        path = self.fetch(shard)
        try:
            return sha256_of_file(path)
        except OSError as error:
            raise _unreadable(str(path), error) from error

    def fetch(self, shard: ShardRecord) -> Path:  # noqa: D102
        return self.directory / shard.file

    def prefetch(self, shards: Iterable[ShardRecord]) -> None:
        """Nothing to do: the operating system reads ahead."""


class RemoteStore:
    """Shards behind an fsspec URL (s3, gs, hf, http, memory, ...), copied whole into a local cache as they are wanted.

    Cached files are named by their checksum, which is proved on arrival: a cache serves any number of datasets and
    processes, and never stale bytes. The least recently used files make room for new ones, within `cache_bytes`, into
    which several shards must fit. Credentials and endpoints are those of fsspec's own configuration
    (`~/.config/fsspec`, or the environment).
    """

    def __init__(self, url: str, cache: Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.where = url.rstrip("/")
        self.cache = make_directory(cache)
        self.cache_bytes = cache_bytes
        with explain_remote_errors(url):
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(self.where)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="shard-download")
        self._pending: dict[str, Future[Path]] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:  # noqa: D102
        try:
            return bytes(self._files.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError as error:
            raise _unreadable(f"{self.where}/{name}", error) from error
        except Exception as error:  # every protocol of fsspec brings its own exceptions
            raise DownloadError(f"could not read {self.where}/{name}: {first_line(error)}") from error

    def check_presence(self, shards: Iterable[ShardRecord]) -> None:
        """Nothing here: asking for 100,000 sizes over a network is not cheap; a missing shard is named when wanted."""

    def checksum(self, shard: ShardRecord) -> str:  # noqa: D102
        digest = hashlib.sha256()
        for block in self._blocks(shard):
            digest.update(block)
        return digest.hexdigest()

    def fetch(self, shard: ShardRecord) -> Path:
        """Local path of the shard; downloads it first unless it is cached.

        DataError if it does not exist or its bytes are not the manifest's, DownloadError after three failed attempts.
        """
        path = self.cache / f"{shard.sha256}.safetensors"
        try:
            os.utime(path)
            return path
        except FileNotFoundError:
            return self._request(shard).result()

    def prefetch(self, shards: Iterable[ShardRecord]) -> None:  # noqa: D102
        for shard in shards:
            if not (self.cache / f"{shard.sha256}.safetensors").exists():
                self._request(shard)

    def _request(self, shard: ShardRecord) -> Future[Path]:
        with self._lock:
            future = self._pending.get(shard.sha256)
            if future is None:
                future = self._pending[shard.sha256] = self._pool.submit(self._download, shard)
                future.add_done_callback(lambda _: self._pending.pop(shard.sha256, None))
            return future

    def _download(self, shard: ShardRecord) -> Path:
        path = self.cache / f"{shard.sha256}.safetensors"
        with lock(self.cache / f".{shard.sha256}.lock", in_use=None, stays=False):
            if path.exists():  # another process was faster
                return path
            _log.info("fetching %s/%s (%d bytes)", self.where, shard.file, shard.bytes)
            self._make_room(shard.bytes)
            digest = hashlib.sha256()
            with replace_file(path) as target:
                for block in self._blocks(shard):
                    digest.update(block)
                    target.write(block)
                if digest.hexdigest() != shard.sha256:
                    raise DataError(f"{self.where}/{shard.file} is damaged: its checksum is not the manifest's")
            return path

    def _blocks(self, shard: ShardRecord) -> Iterator[bytes]:
        """The shard's bytes, block by block; a connection that breaks is taken up where it broke."""
        position = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._files.open(f"{self._root}/{shard.file}", "rb", block_size=_BLOCK) as source:
                    source.seek(position)
                    while block := source.read(_BLOCK):
                        position += len(block)
                        yield block
                return
            except FileNotFoundError as error:
                raise _unreadable(f"{self.where}/{shard.file}", error) from error
            except Exception as error:  # every protocol of fsspec brings its own exceptions
                if attempt == _ATTEMPTS:
                    raise DownloadError(f"could not read {self.where}/{shard.file}: {first_line(error)}") from error
                time.sleep(0.5 * attempt)

    def _make_room(self, wanted: int) -> None:
        if wanted > self.cache_bytes:
            raise UsageError(f"a cache of {self.cache_bytes} bytes cannot hold a shard of {wanted}; allow more")
        files = []
        for file in self.cache.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process may be making room as well
                status = file.stat()
                files.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total + wanted <= self.cache_bytes:
                return
            with suppress(PermissionError):  # Windows removes no file that is open; elsewhere a reader keeps its bytes
                file.unlink(missing_ok=True)
                total -= size


def _unreadable(where: str, error: OSError, near: Sequence[Path] = ()) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where} is missing; {did_you_mean(near, 'restore it, or encode the dataset again')}")
    return DataError(f"cannot read {where}: {error.strerror or error}")


def open_store(url: str | Path, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> ShardStore:
    """The store for a local path or an fsspec URL."""
    text = str(url)
    if not is_url(text):
        return LocalStore(Path(text))
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    return RemoteStore(text, cache or cache_directory("latents"), cache_bytes)
