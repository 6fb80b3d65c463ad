"""Whether images are still those that something was made of: a digest of names, sizes and a sample of the bytes.

It does not depend on where the images lie or how old they are, so a copy of a folder has the digest of the original.
Images that only change beyond the sampled bytes and keep their size (an edited corner of an uncompressed one) escape.
For an image in a parquet file it is the size of that file and some of its bytes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dcae_core.data.parquet import is_parquet
from dcae_core.data.remote import is_url, read_remote, size_of_remote
from dcae_core.data.sources import ImageReference
from dcae_core.errors import DataError
from dcae_core.files import open_for_reading, read_at

_SAMPLE_BYTES = 4096  # from the middle of each image
_CHUNK, _NUM_THREADS = 32, 32


def digest_of_images(images: Sequence[ImageReference]) -> str:
    """SHA-256 over each image's name, size and the bytes in its middle, in hexadecimal.

    Costs opening every file and one small read: about a minute for a million on a local disk. Behind a URL it is two
    small requests a file, or one for an image in a tar shard.

    Raises:
        DownloadError: a remote place cannot be reached.
    """
    digest = hashlib.sha256()
    chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for group in _groups(chunks, _NUM_THREADS):
            for part in pool.map(_describe, group):
                digest.update(part)
    return digest.hexdigest()


def _groups(chunks: Iterable[Sequence[ImageReference]], size: int) -> Iterable[list[Sequence[ImageReference]]]:
    """As many chunks at a time as there are threads: a pool would take all of them into memory at once."""
    group: list[Sequence[ImageReference]] = []
    for chunk in chunks:
        group.append(chunk)
        if len(group) == size:
            yield group
            group = []
    yield group


def _describe(images: Sequence[ImageReference]) -> bytes:
    lines = bytearray()
    for image in images:
        size, sample = _sample(image)
        lines += f"{image.key}\0{size}\0".encode("utf-8", "surrogateescape") + hashlib.sha256(sample).digest()
    return bytes(lines)


def _sample(image: ImageReference) -> tuple[int, bytes]:
    """Its size, and some bytes from its middle; -1 and none where it cannot be read."""
    try:
        return _sample_remote(image) if is_url(image.path) else _sample_local(image)
    except (OSError, DataError):
        return -1, b""


def _sample_local(image: ImageReference) -> tuple[int, bytes]:
    descriptor = open_for_reading(image.path)
    try:
        if image.offset >= 0 and is_parquet(image.path):
            whole = os.fstat(descriptor).st_size
            # Where a row's bytes lie is for the file's own reader to say: each row stands for another part of the file.
            return whole, read_at(descriptor, _SAMPLE_BYTES, image.offset * _SAMPLE_BYTES % max(1, whole))
        start, size = (image.offset, image.size) if image.offset >= 0 else (0, os.fstat(descriptor).st_size)
        return size, read_at(descriptor, min(_SAMPLE_BYTES, size), start + _middle(size))
    finally:
        os.close(descriptor)


def _sample_remote(image: ImageReference) -> tuple[int, bytes]:
    start, size = (image.offset, image.size) if image.offset >= 0 else (0, size_of_remote(image.path))
    return size, read_remote(image.path, start + _middle(size), min(_SAMPLE_BYTES, size))


def _middle(size: int) -> int:
    return max(0, (size - _SAMPLE_BYTES) // 2)
