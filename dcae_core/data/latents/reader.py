"""Read a latent dataset: any item at any time, by position, without holding more than what was asked for."""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.latents.manifest import MANIFEST_NAME, Manifest, parse_manifest
from dcae_core.data.latents.shard import TORCH_DTYPES, ShardLayout, parse_header, parse_header_length
from dcae_core.data.latents.store import DEFAULT_CACHE_BYTES, ShardStore, open_store
from dcae_core.errors import DataError

_MAX_OPEN_SHARDS = 256


class _OpenShard:
    """One open file and what its header says. The file closes with the last reference, so readers never race."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"cannot open {path}: {error.strerror}; restore it or encode the dataset again") from error
        self.path = path
        header_bytes = parse_header_length(os.pread(self.descriptor, 8, 0), str(path))
        header = os.pread(self.descriptor, header_bytes, 8)
        self.layout: ShardLayout = parse_header(
            header, str(path), dtype=manifest.dtype, latent_shape=manifest.latent_shape
        )
        self.labels = np.frombuffer(self.read(self.layout.labels, 8 * self.layout.count), dtype="<i8")

    def read(self, offset: int, length: int) -> bytes:
        content = os.pread(self.descriptor, length, offset)
        if len(content) != length:
            raise self._cut_short()
        return content

    def read_into(self, row: np.ndarray, offset: int) -> None:
        try:
            length = os.preadv(self.descriptor, [row.data], offset)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if length != row.nbytes:
            raise self._cut_short()

    def _cut_short(self) -> DataError:
        return DataError(f"{self.path} is cut short; restore it or encode the dataset again")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class LatentDataset:
    """Random access to the items of a latent dataset; safe to share among threads and forked workers.

    Opening reads the manifest and, on a local disk, asks the size of every shard. Reading item i costs one positional
    read of `manifest.item_bytes`; each shard's header and labels are read once, when first touched. At most 256 files
    are open.

    Args:
        url: directory of the dataset, local or any fsspec URL.
        cache: local directory for the shards of a remote dataset (default `~/.cache/dcae/latents`).
        cache_bytes: upper bound of that directory.

    Raises:
        DataError: there is no manifest, it contradicts itself, or a shard is missing or of another size.
    """

    def __init__(self, url: str | Path, *, cache: Path | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.store: ShardStore = open_store(url, cache, cache_bytes)
        where = f"{self.store.where}/{MANIFEST_NAME}"
        self.manifest = parse_manifest(self.store.read(MANIFEST_NAME), where)
        self.store.check_presence(self.manifest.shards)
        self.shard_counts = np.array([shard.count for shard in self.manifest.shards], dtype=np.int64)
        self._ends = list(accumulate(shard.count for shard in self.manifest.shards))
        self._starts = np.concatenate([[0], self._ends[:-1]]).astype(np.int64)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Item `index`: the unscaled latent (C, h, w) in its stored dtype, and its label."""
        if not 0 <= index < self.manifest.count:
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        shard = self._shard(number)
        offset = index - int(self._starts[number])
        row = np.empty(self.manifest.item_bytes, dtype=np.uint8)
        shard.read_into(row, shard.layout.latents + offset * row.nbytes)
        latent = torch.from_numpy(row).view(TORCH_DTYPES[self.manifest.dtype]).view(self.manifest.latent_shape)
        return latent, int(shard.labels[offset])

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Items at `indices`, in that order: latents (B, C, h, w), unscaled in their stored dtype, and labels (B,)."""
        numbers, offsets = self.locate(np.asarray(indices, dtype=np.int64))
        item_bytes = self.manifest.item_bytes
        rows = np.empty((len(numbers), item_bytes), dtype=np.uint8)
        labels = np.empty(len(numbers), dtype=np.int64)
        for i, (number, offset) in enumerate(zip(numbers.tolist(), offsets.tolist(), strict=True)):
            shard = self._shard(number)
            shard.read_into(rows[i], shard.layout.latents + offset * item_bytes)
            labels[i] = shard.labels[offset]
        latents = torch.from_numpy(rows).view(TORCH_DTYPES[self.manifest.dtype])
        return latents.view(-1, *self.manifest.latent_shape), torch.from_numpy(labels)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number of each item, and its place in that shard."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.manifest.count:
            raise IndexError(f"items run from 0 to {self.manifest.count - 1}")
        numbers = np.searchsorted(self._ends, indices, side="right")
        return numbers, indices - self._starts[numbers]

    def prefetch(self, shard_numbers: Sequence[int] | np.ndarray) -> None:
        """Start to fetch these shards, where fetching is needed, and return at once."""
        self.store.prefetch(self.manifest.shards[int(number)] for number in shard_numbers)

    def names(self, shard_number: int) -> list[str]:
        """Names of the pictures of one shard, in order (one per picture, also where there are two items of each)."""
        shard = self._shard(shard_number)
        layout = shard.layout
        text = shard.read(layout.names, layout.end - layout.names).decode("utf-8", "surrogateescape")
        return text.split("\n") if layout.count else []

    def _shard(self, number: int) -> _OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        record = self.manifest.shards[number]
        shard = _OpenShard(self.store.fetch(record), self.manifest)
        if shard.layout.count != record.count or shard.layout.end != record.bytes:
            raise DataError(f"{self.store.where}/{record.file} does not hold what the manifest says; restore it")
        with self._lock:
            self._open[number] = shard
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard
