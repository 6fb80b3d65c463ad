"""The manifest of a latent dataset: what its latents are, who made them, and what each shard holds.

A dataset is a directory (or any fsspec URL) of safetensors shards beside one `manifest.json`. The manifest is the last
file written, so a directory that has one is complete.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from dcae_core.data.latents.statistics import LatentStatistics
from dcae_core.errors import DataError
from dcae_core.json_reader import parse_json

MANIFEST_NAME = "manifest.json"
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

LatentDtype = Literal["float16", "bfloat16", "float32"]
Side = Annotated[int, Field(gt=0, lt=1 << 20)]


class Record(BaseModel):
    """Part of a manifest: no fields but its own, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderRecord(Record):
    """The autoencoder whose unscaled latents are stored. A network sees `latent * scaling_factor`."""

    name: str
    fingerprint: str | None = None  # None: latents made by other software, known by the encoder's name alone
    encoder_fingerprint: str | None = None  # of the encoder alone; None: written before it was recorded
    scaling_factor: float | None = Field(gt=0, allow_inf_nan=False)  # None: 1 / rms of the dataset takes its place

    def is_encoder_of(self, other: "EncoderRecord") -> bool:
        """Whether both make the same latents, as far as the records know."""
        if self.fingerprint is None or other.fingerprint is None:
            return self.name == other.name
        same_encoder = self.encoder_fingerprint is not None and self.encoder_fingerprint == other.encoder_fingerprint
        return self.fingerprint == other.fingerprint or same_encoder

    def describe(self) -> str:
        """Its name, and enough of its fingerprint to tell it from others."""
        return self.name + (f" ({self.fingerprint[:12]})" if self.fingerprint else "")

    @model_serializer(mode="wrap")
    def _leave_out_the_unknown(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A manifest that was written before keeps its bytes, and so its identity."""
        values: dict[str, Any] = serialise(self)
        return values if self.encoder_fingerprint else {k: v for k, v in values.items() if k != "encoder_fingerprint"}


class TransformRecord(Record):
    """How an image became the encoder's input."""

    resolution: int = Field(gt=0)  # side of the square crop, pixels
    crop: Literal["adm", "unknown"] = "adm"
    apply_exif: bool = True
    flipped_copies: bool = False  # items 2i and 2i + 1 are image i and its mirror image
    alpha: Literal["white", "drop"] = "white"  # transparency composed on white, or dropped as the published code does

    @model_serializer(mode="wrap")
    def _without_newer_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep the text, and so the identity, of manifests written before there was a choice."""
        values = serialise(self)
        return values if self.alpha != "white" else {key: value for key, value in values.items() if key != "alpha"}


class ShardRecord(Record):
    """One shard file. Items keep the order of the manifest: shard 0 first."""

    file: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")  # a plain name: a manifest cannot point outside its directory
    count: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    statistics: LatentStatistics | None  # None for a shard without items (every image of it was damaged)


class DamagedRecord(Record):
    """An image that could not be decoded and was left out."""

    picture: str  # the field is called this on disk
    reason: str

    @property
    def image(self) -> str:
        """Name of the image."""
        return self.picture


class Manifest(Record):
    """Everything that is known about a latent dataset. See `docs/latents.md` for the meaning of each field."""

    format: Literal["dcae-latents"] = "dcae-latents"
    version: Literal[1] = 1
    encoder: EncoderRecord
    transform: TransformRecord
    encoding: dict[str, Any]  # settings that the bytes depend on: batch size, compute dtype, ...
    dtype: LatentDtype
    latent_shape: tuple[Side, Side, Side]  # (C, h, w)
    count: int = Field(ge=0)
    classes: list[str]  # label k is classes[k]; one class for images without
    statistics: LatentStatistics | None
    damaged: list[DamagedRecord] = []
    shards: list[ShardRecord]

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if sum(shard.count for shard in self.shards) != self.count:
            raise ValueError("the shards' counts do not add up to the dataset's count")
        for shard in self.shards:
            if shard.bytes < shard.count * self.item_bytes:
                raise ValueError(f"{shard.file} is too small for {shard.count} latents of {self.latent_shape}")
        for statistics in (self.statistics, *(shard.statistics for shard in self.shards)):
            self._check_statistics(statistics)
        for field in ("file", "sha256"):
            seen: dict[str, int] = {}
            for number, shard in enumerate(self.shards):
                first = seen.setdefault(getattr(shard, field), number)
                if first != number:
                    raise ValueError(f"duplicate shard: entries {first} and {number} are both {shard.file}")
        return self

    def _check_statistics(self, statistics: LatentStatistics | None) -> None:
        for values in (statistics.channel_mean, statistics.channel_mean_square) if statistics else ():
            if len(values) != self.latent_shape[0] or not all(map(math.isfinite, values)):
                raise ValueError(f"statistics are not {self.latent_shape[0]} finite numbers")

    @property
    def item_bytes(self) -> int:
        """Bytes of one stored latent."""
        return math.prod(self.latent_shape) * ITEM_BYTES[self.dtype]

    @property
    def scaling_factor(self) -> float:
        """What a network's latents are multiplied by: the encoder's factor, or 1 / rms where it has none."""
        if self.encoder.scaling_factor is not None:
            return self.encoder.scaling_factor
        return self.statistics.scaling_factor if self.statistics else 1.0

    @property
    def copies(self) -> int:
        """Items per image: 2 with flipped copies, else 1."""
        return 2 if self.transform.flipped_copies else 1

    def identity(self) -> str:
        """A checksum of the manifest, and so of everything in the dataset."""
        return sha256(self.to_json().encode())

    def to_json(self) -> str:
        """The manifest's file content. Equal manifests give equal text."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest's JSON; `where` names it in messages.

    DataError where it is not JSON, not a latent manifest, of another version, or its fields contradict each other.
    """
    try:
        return Manifest.model_validate(parse_json(content, where))
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "manifest"
        raise DataError(f"{where} is not a usable latent manifest: {field}: {fault['msg']}") from error


def check_encoder(manifest: Manifest, where: str, used: EncoderRecord) -> None:
    """Refuse, with DataError, latents that were made by another encoder than the one in use.

    Fingerprints decide where both sides have one, of the encoder alone where the decoders differ; otherwise names do.
    """
    made = manifest.encoder
    if not made.is_encoder_of(used):
        raise DataError(
            f"the latents in {where} were made by {made.describe()}, not by {used.describe()}; name the autoencoder "
            "that made them (autoencoder: DIR in the recipe), or encode again"
        )


def sha256(content: bytes) -> str:
    """SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
