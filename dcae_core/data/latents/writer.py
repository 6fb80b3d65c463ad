"""Write a latent dataset shard by shard, by any number of processes, so that a kill loses at most unfinished shards.

A finished shard is its file and, beside it, its record; both appear whole or not at all. The last act gathers the
records into the manifest and removes them, so that the finished directory holds the same bytes however it came about.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from dcae_core.data.latents.manifest import (
    MANIFEST_NAME,
    DamagedRecord,
    EncoderRecord,
    LatentDtype,
    Manifest,
    Record,
    ShardRecord,
    TransformRecord,
    parse_manifest,
)
from dcae_core.data.latents.shard import build_shard
from dcae_core.data.latents.statistics import merge_statistics
from dcae_core.errors import DataError, UsageError
from dcae_core.files import lock_directory, make_directory, remove_leftovers, write_bytes, write_text

PLAN_NAME = "unfinished.json"
IMAGES_KEY = "images_content_sha256"  # of `DatasetPlan.encoding`: what tells changed images from the encoded ones


class DatasetPlan(Record):
    """What is known of a dataset before its first latent: everything that its bytes depend on."""

    encoder: EncoderRecord
    transform: TransformRecord
    encoding: dict[str, Any]
    dtype: LatentDtype
    latent_shape: tuple[int, int, int]
    classes: list[str]
    num_shards: int

    def in_terms_of(self, earlier: "DatasetPlan") -> "DatasetPlan":
        """The plan without what an earlier version did not record, under the name that the encoder had then."""
        known = {key: value for key, value in self.encoding.items() if key != IMAGES_KEY or key in earlier.encoding}
        encoder, before = self.encoder, earlier.encoder
        if encoder.fingerprint is not None and encoder.fingerprint == before.fingerprint:
            named = {"name": before.name, "encoder_fingerprint": before.encoder_fingerprint}
            encoder = encoder.model_copy(update=named)
        return self.model_copy(update={"encoding": known, "encoder": encoder})


class FinishedShard(Record):
    """What is kept of a shard until the manifest is written."""

    shard: ShardRecord
    damaged: list[DamagedRecord]


class LatentDatasetWriter:
    """Writes the shards of one dataset; each process writes its own shards, one of them begins and finishes."""

    def __init__(self, directory: Path, plan: DatasetPlan) -> None:
        self.directory = directory
        self.plan = plan

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second run (UsageError); the lock goes with the process, however that ends."""
        with lock_directory(self.directory, "run; wait, or choose another"):
            yield

    def begin(self) -> None:
        """Create the directory, or recognise an earlier run of the same plan in it.

        UsageError where it holds something else, or a dataset made with other settings.
        """
        make_directory(self.directory)
        earlier = self._read_earlier_plan()
        if earlier is None:
            if any(not entry.name.startswith(".") for entry in self.directory.iterdir()):
                raise UsageError(f"{self.directory} holds other files; choose an empty or new directory for --out")
            write_text(self.directory / PLAN_NAME, self.plan.model_dump_json(indent=1) + "\n")
            return
        self.plan = self.plan.in_terms_of(earlier)
        if earlier == self.plan:
            return
        of_same_images = self.plan.model_copy(update={"encoding": self.plan.encoding | _images_of(earlier)})
        made = f"made with other settings ({_first_difference(earlier, self.plan)})"
        raise UsageError(
            f"{self.directory} holds latents "
            f"{'of images that have changed since' if earlier == of_same_images else made}; "
            "choose another --out, or remove it to encode again"
        )

    def finished(self, number: int) -> FinishedShard | None:
        """The record of shard `number` if it is complete, else None."""
        record_path = self._record_path(number)
        try:
            record = FinishedShard.model_validate_json(record_path.read_bytes())
            size = (self.directory / record.shard.file).stat().st_size
        except (FileNotFoundError, ValidationError):
            return None
        return record if size == record.shard.bytes else None

    def write_shard(
        self, number: int, latents: Tensor, labels: Tensor, names: Sequence[str], damaged: Sequence[DamagedRecord]
    ) -> FinishedShard:
        """Write shard `number` and its record; arguments as for `build_shard`."""
        content, shard = build_shard(number, latents, labels, names)
        record = FinishedShard(shard=shard, damaged=list(damaged))
        write_bytes(self.directory / shard.file, content)
        write_text(self._record_path(number), record.model_dump_json() + "\n")
        return record

    def finish(self) -> Manifest:
        """Write the manifest of all shards (DataError if one is missing) and remove what only the way there needed."""
        manifest_path = self.directory / MANIFEST_NAME
        if not manifest_path.exists():
            write_text(manifest_path, self._gather().to_json())
        for leftover in self.directory.glob("shard-*.json"):
            leftover.unlink()
        remove_leftovers(self.directory)
        (self.directory / PLAN_NAME).unlink(missing_ok=True)
        return parse_manifest(manifest_path.read_bytes(), str(manifest_path))

    def is_complete(self) -> bool:
        """Whether the manifest has been written."""
        return (self.directory / MANIFEST_NAME).exists()

    def _gather(self) -> Manifest:
        records = [self.finished(number) for number in range(self.plan.num_shards)]
        if None in records:
            raise DataError(f"{self.directory}: shard {records.index(None)} is missing; run the command again")
        complete = [record for record in records if record is not None]
        shards = [record.shard for record in complete]
        return Manifest(
            **self.plan.model_dump(exclude={"num_shards"}),
            count=sum(shard.count for shard in shards),
            statistics=merge_statistics([(shard.count, shard.statistics) for shard in shards if shard.statistics]),
            damaged=[damage for record in complete for damage in record.damaged],
            shards=shards,
        )

    def _read_earlier_plan(self) -> DatasetPlan | None:
        manifest_path = self.directory / MANIFEST_NAME
        plan_path = self.directory / PLAN_NAME
        if manifest_path.exists():
            manifest = parse_manifest(manifest_path.read_bytes(), str(manifest_path))
            shared = manifest.model_dump(include=set(DatasetPlan.model_fields))
            return DatasetPlan(**shared, num_shards=len(manifest.shards))
        if not plan_path.exists():
            return None
        try:
            return DatasetPlan.model_validate_json(plan_path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{plan_path} is damaged; remove {self.directory} and encode again") from error

    def _record_path(self, number: int) -> Path:
        return self.directory / f"shard-{number:06d}.json"


def _images_of(plan: DatasetPlan) -> dict[str, Any]:
    return {key: value for key, value in plan.encoding.items() if key == IMAGES_KEY}


def _first_difference(earlier: DatasetPlan, now: DatasetPlan) -> str:
    before, after = _flatten(earlier.model_dump()), _flatten(now.model_dump())
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            return f"{key}: {_shorten(before.get(key))} there, {_shorten(after.get(key))} now"
    raise AssertionError("equal plans")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
