"""Prove that a latent dataset still holds the bytes that were written."""

from collections.abc import Callable
from pathlib import Path

from dcae_core.data.latents.manifest import MANIFEST_NAME, Manifest, ShardRecord, parse_manifest
from dcae_core.data.latents.store import LocalStore, ShardStore, open_store
from dcae_core.errors import DataError


def verify_dataset(url: str | Path, advance: Callable[[int], object] | None = None) -> tuple[Manifest, list[str]]:
    """Read every byte of the dataset once and compare checksums.

    Args:
        url: directory of the dataset, local or any fsspec URL.
        advance: called with 1 after each shard.

    Returns:
        The manifest, and one line for each fault: a missing shard, one whose bytes changed, one that is a copy of
        another, a file that looks like a shard but is not in the manifest. No line: the dataset is whole.

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


def _unlisted_shards(directory: Path, manifest: Manifest) -> list[str]:
    listed = {shard.file for shard in manifest.shards}
    extra = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in listed)
    return [f"{directory}/{name} is not in the manifest; remove it (a duplicate shard?)" for name in extra]
