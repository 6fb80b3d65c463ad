"""The bytes of one shard, written and read: a safetensors file of latents, labels and names in a fixed order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dcae_core.data.latents.manifest import (
    ITEM_BYTES,
    ShardRecord,
    sha256,
)
from dcae_core.data.latents.statistics import LatentMoments
from dcae_core.errors import DataError
from dcae_core.json_reader import parse_json

TORCH_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_STORED_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardLayout:
    """Where the items of one shard lie in its file, in bytes from the file's start."""

    count: int
    item_bytes: int
    latents: int
    labels: int
    names: int
    end: int


def shard_file_name(number: int) -> str:
    """File name of shard `number`."""
    return f"shard-{number:06d}.safetensors"


def build_shard(number: int, latents: Tensor, labels: Tensor, names: Sequence[str]) -> tuple[bytes, ShardRecord]:
    """Serialise one shard into its bytes and its record; equal arguments give equal bytes. Holds two copies of it.

    Args:
        number: position among the dataset's shards; part of the bytes, so that no two shards are ever equal.
        latents: (n, C, h, w), unscaled, on the CPU, in the dtype to store.
        labels: (n,) integers.
        names: one per image; no newlines in them.
    """
    assert not any("\n" in name for name in names)
    encoded_names = "\n".join(names).encode("utf-8", "surrogateescape")
    tensors = {
        "latents": latents.contiguous(),
        "labels": labels.to(torch.int64),
        "names": torch.frombuffer(bytearray(encoded_names or b"\n"), dtype=torch.uint8),
    }
    # One metadata key: safetensors writes several in no fixed order.
    content = save(tensors, metadata={"shard": str(number)})
    moments = LatentMoments()
    moments.update(latents)
    record = ShardRecord(
        file=shard_file_name(number),
        count=len(latents),
        bytes=len(content),
        sha256=sha256(content),
        statistics=moments.result(),
    )
    return content, record


def parse_header_length(first_bytes: bytes, where: str) -> int:
    """Length of the JSON header that follows a safetensors file's first eight bytes, or DataError."""
    length = int.from_bytes(first_bytes, "little")
    if len(first_bytes) != 8 or not 2 <= length <= _MAX_HEADER_BYTES:
        raise _not_a_shard(where)
    return length


def parse_header(header: bytes, where: str, *, dtype: str, latent_shape: tuple[int, ...]) -> ShardLayout:
    """Find the items from a safetensors header (the JSON after the first eight bytes).

    DataError where this is no shard of latents of `dtype` and `latent_shape`.
    """
    try:
        entries = parse_json(header, where)
        latents, labels, names = entries["latents"], entries["labels"], entries["names"]
        starts = [int(entry["data_offsets"][0]) for entry in (latents, labels, names)]
        ends = [int(entry["data_offsets"][1]) for entry in (latents, labels, names)]
        count, *shape = (int(side) for side in latents["shape"])
        stored = _STORED_NAMES.get(latents["dtype"])
        are_labels_and_names = (labels["dtype"], names["dtype"]) == ("I64", "U8")
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, DataError) as error:
        raise _not_a_shard(where) from error
    if stored != dtype or tuple(shape) != tuple(latent_shape):
        raise DataError(f"{where} holds {stored} latents of shape {shape}, the manifest says {dtype} {latent_shape}")
    item_bytes = math.prod(latent_shape) * ITEM_BYTES[dtype]
    sizes_fit = ends[0] - starts[0] == count * item_bytes and ends[1] - starts[1] == count * 8
    if not sizes_fit or not are_labels_and_names or min(starts) != 0:
        raise _not_a_shard(where)
    base = 8 + len(header)
    return ShardLayout(count, item_bytes, base + starts[0], base + starts[1], base + starts[2], base + max(ends))


def shard_number(header: bytes) -> str:
    """The number a shard was written under, from its header; empty where it is not told."""
    metadata: Any = parse_json(header, "a shard").get("__metadata__")
    return str(metadata.get("shard", "")) if isinstance(metadata, dict) else ""


def _not_a_shard(where: str) -> DataError:
    return DataError(f"{where} is not a latent shard, or is damaged; encode it again or restore it")
