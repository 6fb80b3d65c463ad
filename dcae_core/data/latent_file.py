"""Files of latents to decode: that of one image, which says whose it is, or those of samples."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dcae_core.errors import DataError, printable
from dcae_core.files import write_bytes

_MAX_SIDE = 1 << 31  # pixels; what a PNG can say
_IMAGE, _SAMPLES = "latent", "latents"  # (C, h, w) with metadata; (N, C, h, w) without


@dataclass(frozen=True)
class Origin:
    """Where the latent of an image comes from, and what is needed to turn it back into the image.

    Attributes:
        height: of the image, before padding, as `width`.
        model: what the autoencoder that made it was called on the command line; "" for the embedded one.
        fingerprint: of that autoencoder's weights.
        tile: side of the tiles it was encoded in, in pixels; None for whole.
        encoder_fingerprint: of its encoder alone; None where it has none, or was not recorded yet.
    """

    height: int
    width: int
    model: str
    fingerprint: str
    tile: int | None
    encoder_fingerprint: str | None = None

    def has_encoder(self, fingerprint: str | None) -> bool:
        """Whether this encoder is known to have made the latent; one without a fingerprint is not."""
        return fingerprint is not None and fingerprint == self.encoder_fingerprint


@dataclass(frozen=True)
class StoredLatents:
    """What a file holds: float32 (N, C, h, w), unscaled; with an origin the latent of an image, without one samples."""

    latents: Tensor
    origin: Origin | None


def save_latent(path: Path, latent: Tensor, origin: Origin, ratio: int) -> None:
    """Write the latent (C, h, w) of an image, whole or not at all; `ratio` is the spatial compression ratio."""
    metadata = {
        "model": origin.model,
        "fingerprint": origin.fingerprint,
        "height": str(origin.height),
        "width": str(origin.width),
        "padding_bottom": str(latent.shape[1] * ratio - origin.height),
        "padding_right": str(latent.shape[2] * ratio - origin.width),
        "tile": str(origin.tile or ""),
        "encoder_fingerprint": origin.encoder_fingerprint or "",
    }
    write_bytes(path, _serialise({_IMAGE: latent.contiguous()}, metadata))


def _serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """As safetensors does, with the header in order: it writes metadata in another order in every process."""
    content = save(tensors, metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def read_latents(path: Path) -> StoredLatents:
    """Read the latent of an image, or those of `dcae sample --save-latents`, or DataError; nothing in it is trusted."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            if _SAMPLES in file.keys():  # noqa: SIM118 - not a dictionary
                stored = StoredLatents(file.get_tensor(_SAMPLES), None)
            else:
                stored = StoredLatents(file.get_tensor(_IMAGE)[None], _read_origin(file.metadata() or {}))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path} holds no latents of `dcae reconstruct --save-latents` or `dcae sample --save-latents`, "
            "or is damaged"
        ) from error
    latents = stored.latents
    are_values = latents.dtype == torch.float32 and bool(torch.isfinite(latents).all())
    if latents.ndim != 4 or latents.numel() == 0 or not are_values:
        raise DataError(f"{path}: latents must be finite float32 values of shape (C, h, w), or (N, C, h, w) of samples")
    return stored


def _read_origin(metadata: dict[str, str]) -> Origin:
    origin = Origin(
        height=int(metadata["height"]),
        width=int(metadata["width"]),
        model=metadata["model"],
        fingerprint=metadata["fingerprint"],
        tile=int(metadata["tile"]) if metadata["tile"] else None,
        encoder_fingerprint=metadata.get("encoder_fingerprint") or None,
    )
    if not all(0 < side < _MAX_SIDE for side in (origin.height, origin.width, origin.tile or 1)):
        raise ValueError("sides that no image has")
    return origin


def check_latents(
    path: Path,
    stored: StoredLatents,
    channels: int,
    ratio: int,
    fingerprint: str,
    encoder_fingerprint: str | None = None,
) -> None:
    """Refuse to decode latents with an autoencoder that cannot have made them.

    DataError where the weights are others and the encoder's too, so are the channels, or their size does not fit the
    image's. The fingerprints are those of the autoencoder that is to decode, and of its encoder.
    """
    origin = stored.origin
    if origin is not None and origin.fingerprint != fingerprint and not origin.has_encoder(encoder_fingerprint):
        made_by = printable(origin.model) or "the embedded model"
        raise DataError(
            f"{path} was encoded by {made_by}, and the encoder of the model given has other weights: "
            "leave --model out, or give one that was trained from it with its encoder frozen"
        )
    if stored.latents.shape[1] != channels:
        raise DataError(
            f"{path}: latents of {stored.latents.shape[1]} channels; the model has {channels}: give --model"
        )
    if origin is not None:
        for side, length in zip(stored.latents.shape[2:], (origin.height, origin.width), strict=True):
            if not (side - 1) * ratio < length <= side * ratio:
                raise DataError(f"{path}: an image of {origin.width} x {origin.height} has no latent of this size")
