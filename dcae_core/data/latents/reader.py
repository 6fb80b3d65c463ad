"""Reading a latent dataset: items by number, and the proof that all of it is whole."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.latents.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    parse_manifest,
)
from dcae_core.data.latents.shard import TORCH_DTYPES, ShardLayout, parse_header, parse_header_length
from dcae_core.data.latents.store import DEFAULT_CACHE_BYTES, LocalStore, ShardStore, open_store
from dcae_core.errors import DataError
from dcae_core.files import open_for_reading, read_at, read_into
from dcae_core.progress import Advance

_MAX_OPEN_SHARDS = 256


class _OpenShard:
    """One open file and what its header says. The file closes with the last reference, so readers never race."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        try:
            self.descriptor = open_for_reading(path)
        except OSError as error:
            raise DataError(f"cannot open {path}: {error.strerror}; restore it or encode the dataset again") from error
        self.path = path
        header_bytes = parse_header_length(read_at(self.descriptor, 8, 0), str(path))
        header = read_at(self.descriptor, header_bytes, 8)
        self.layout: ShardLayout = parse_header(
            header, str(path), dtype=manifest.dtype, latent_shape=manifest.latent_shape
        )
        self.labels = np.frombuffer(self.read(self.layout.labels, 8 * self.layout.count), dtype="<i8")
        num_labels = max(1, len(manifest.classes))
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < num_labels:
            wrong = self.labels[(self.labels < 0) | (self.labels >= num_labels)][0]
            raise DataError(f"{path} has label {wrong}, the manifest knows 0 to {num_labels - 1}; encode again")

    def read(self, offset: int, length: int) -> bytes:
        content = read_at(self.descriptor, length, offset)
        if len(content) != length:
            raise self._cut_short()
        return content

    def read_into(self, row: np.ndarray, offset: int) -> None:
        try:
            length = read_into(self.descriptor, row.data, offset)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if length != row.nbytes:
            raise self._cut_short()

    def names(self, copies: int) -> list[str]:
        """Names of the images, one for each `copies` latents."""
        if not self.layout.count:
            return []
        text = self.read(self.layout.names, self.layout.end - self.layout.names).decode("utf-8", "surrogateescape")
        names = text.split("\n")
        if len(names) * copies != self.layout.count:
            raise DataError(f"{self.path} has {len(names)} names for {self.layout.count} latents; encode again")
        return names

    def _cut_short(self) -> DataError:
        return DataError(f"{self.path} is cut short; restore it or encode the dataset again")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _open_shard(store: ShardStore, record: ShardRecord, manifest: Manifest) -> _OpenShard:
    shard = _OpenShard(store.fetch(record), manifest)
    if shard.layout.count != record.count or shard.layout.end != record.bytes:
        raise DataError(f"{store.where}/{record.file} does not hold what the manifest says; restore it")
    return shard


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
        latents, labels = self.read([index])
        return latents[0], int(labels[0])

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

    def check_shards(self) -> None:
        """Read the header and the labels of every shard now, rather than when one is first touched.

        Raises:
            DataError: shapes, number types, counts or labels are not what the manifest says.
        """
        for number in range(len(self.manifest.shards)):
            self._shard(number)

    def prefetch(self, shard_numbers: Sequence[int] | np.ndarray) -> None:
        """Start to fetch these shards, where fetching is needed, and return at once."""
        self.store.prefetch(self.manifest.shards[int(number)] for number in shard_numbers)

    def names(self, shard_number: int) -> list[str]:
        """Names of the images of one shard, in order (one per image, also where there are two items of each)."""
        return self._shard(shard_number).names(self.manifest.copies)

    def _shard(self, number: int) -> _OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        record = self.manifest.shards[number]
        shard = _open_shard(self.store, record, self.manifest)
        with self._lock:
            self._open[number] = shard
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard


def verify_dataset(url: str | Path, advance: Advance | None = None) -> tuple[Manifest, list[str]]:
    """Read every byte of the dataset once and compare checksums, then shapes, number types, counts and labels.

    Args:
        url: directory of the dataset, local or any fsspec URL.
        advance: called with 1 after each shard.

    Returns:
        The manifest, and one line for each fault: a missing shard, one whose bytes changed, one that is a copy of
        another, one that does not hold what the manifest says, a file that looks like a shard but is not in the
        manifest. No line: the dataset is whole.

    Raises:
        DataError: the manifest itself is missing, damaged or contradicts itself (it lists a shard twice, say).
        DownloadError: a remote dataset cannot be reached.
    """
    store = open_store(url)
    manifest = parse_manifest(store.read(MANIFEST_NAME), f"{store.where}/{MANIFEST_NAME}")
    by_checksum = {shard.sha256: shard.file for shard in manifest.shards}
    faults = []
    for shard in manifest.shards:
        fault = _fault_of(store, shard, by_checksum)
        if fault is None and isinstance(store, LocalStore):  # a remote shard proves it when it is opened
            fault = _contradiction(store, shard, manifest)
        if fault:
            faults.append(fault)
        if advance:
            advance(1)
    if isinstance(store, LocalStore):
        faults += _unlisted_shards(store.directory, manifest)
    return manifest, faults


def _fault_of(store: ShardStore, shard: ShardRecord, by_checksum: dict[str, str]) -> str | None:
    try:
        found = store.checksum(shard)
    except DataError as error:
        return str(error)
    if found == shard.sha256:
        return None
    where = f"{store.where}/{shard.file}"
    if found in by_checksum:
        return f"{where} is a duplicate of shard {by_checksum[found]}; restore it or encode the dataset again"
    return f"{where} is damaged: its checksum is not the manifest's; restore it or encode the dataset again"


def _contradiction(store: ShardStore, shard: ShardRecord, manifest: Manifest) -> str | None:
    """What a whole shard has otherwise than its manifest says."""
    try:
        _open_shard(store, shard, manifest).names(manifest.copies)
    except DataError as error:
        return str(error)
    return None


def _unlisted_shards(directory: Path, manifest: Manifest) -> list[str]:
    listed = {shard.file for shard in manifest.shards}
    extra = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in listed)
    return [f"{directory}/{name} is not in the manifest; remove it (a duplicate shard?)" for name in extra]
