"""Tensors from files that cannot be trusted: read without unpickling anything, loaded strictly, identified."""

import hashlib
import logging
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dcae_core.errors import CheckpointError, DataError, DownloadError, explain_network_failure
from dcae_core.files import explain_write_errors, lock, make_directory, sha256_of_file
from dcae_core.json_reader import parse_json

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
_MAX_JSON_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100 << 20  # of a safetensors file; its library reads no more
_DTYPES = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.float64}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)
_NAMED = 3  # tensors, in a message about many
_LPIPS_HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/082bb24f84c091ea94de2867d34c4544f68e0963"

_log = logging.getLogger(__name__)


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of one file, on the CPU.

    Reads safetensors; `.pt`, `.pth`, `.ckpt` and `.bin` only as plain tensors (`weights_only=True`), taking the
    entry "state_dict" where there is one. Costs one copy of the file in memory, and with `sha256`, what its bytes must
    hash to, one more pass.

    Raises:
        CheckpointError: missing, damaged, of an unknown kind, holding anything but tensors, or with NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a file of weights")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path}: weights are read from {', '.join(WEIGHT_SUFFIXES)} files only")
    if sha256 is not None and sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded {sha256[:12]}...; fetch it again")
    _log.info("reading %s", path)
    try:
        loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_plain_tensors(path)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than this machine has, or is damaged") from error
    except Exception as error:  # every format has its own kinds of failure; the user has one file to look at
        raise CheckpointError(
            f"{path} cannot be read as weights: damaged or cut short ({_first_line(error)}); fetch or write it again"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in loaded.items()
    ):
        raise CheckpointError(f"{path} holds no dictionary of tensors (nor one under 'state_dict')")
    for key, tensor in loaded.items():
        _require_plain(path, key, tensor)
    return dict(loaded)


def _require_plain(path: Path, key: str, tensor: Tensor) -> None:
    """Refuse what is no dense array of finite real numbers, or takes more memory than the file has for it."""
    advice = "write it as a plain tensor"
    if tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{path}: {key} is {kind}; weights are float32, float16, bfloat16, float64 or integers")
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
        raise CheckpointError(f"{path}: {key} holds no dense array of values; {advice}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {key} repeats values that the file holds once; {advice}")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise CheckpointError(f"{path}: {key} has NaN or other values that are not finite; fetch the file again")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise ValueError("its header is longer than it can be")
    return load_file(path)


def _load_plain_tensors(path: Path) -> Any:
    _refuse_what_grows(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be read as weights: it is damaged or holds more than tensors, and loading that can run "
            "code; ask for a safetensors file, or convert it where you trust it"
        ) from error


def _refuse_what_grows(path: Path) -> None:
    """Refuse archives that unpack to more than the file: torch itself compresses nothing and no longer writes tars."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is a compressed archive, which torch does not write; ask for another file")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CheckpointError(f"{path} is damaged: it claims to hold more than it has; fetch it again")
    elif tarfile.is_tarfile(path):
        raise CheckpointError(f"{path} is a tar, as torch wrote before 2017; convert it with the torch that wrote it")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_strictly(network: nn.Module, state: dict[str, Tensor], where: Path, dtype: torch.dtype | None = None) -> None:
    """Give `network` these tensors; they are taken over, not copied, so it may be built on the meta device.

    Args:
        network: what they must fit.
        state: tensors under the network's own names; emptied on the way, so that one copy of each is alive.
        where: named in the message.
        dtype: what floating-point tensors are converted to; by default the network's own types.

    Raises:
        CheckpointError: missing or unexpected keys, or wrong shapes.
    """
    expected = network.state_dict()
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        faults = [
            f"{len(keys)} {what} ({_some(keys)})"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise CheckpointError(f"{where} does not fit the network: tensors {', '.join(faults)}")
    wrong = [key for key, tensor in expected.items() if tensor.shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{where} does not fit the network: {len(wrong)} tensors have another shape, first {key}: "
            f"{tuple(state[key].shape)} where the network has {tuple(expected[key].shape)}"
        )
    for key, tensor in expected.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        state[key] = state[key].to(target)
    network.load_state_dict(state, strict=True, assign=True)


def _some(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all weights, in the order of their names, in hexadecimal.

    Take it from the plain network, before it is prepared for inference or cast. Costs one pass over the weights.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def encoder_fingerprint(network: nn.Module) -> str | None:
    """That of the encoder alone: autoencoders that differ in nothing but their decoders make the same latents.

    None where the network has no part of its own that makes the latents (a KL autoencoder).
    """
    encoder = getattr(network, "encoder", None)
    return fingerprint(encoder) if isinstance(encoder, nn.Module) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, such as the configuration beside weights.

    CheckpointError where it is missing, unreadable, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is too large for a configuration file")
        values = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def require_scaling_factor(value: object, path: Path) -> float | None:
    """The scaling factor that a configuration file gives, None where it gives none.

    CheckpointError where it is no finite number above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"{path}: scaling_factor must be a finite number above 0, not {str(value)[:60]}")
    return float(value)


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights that a metric is defined by: its name in the cache, its source, its SHA-256, its size."""

    file_name: str
    url: str
    sha256: str
    size: str


INCEPTION_2015_12_05 = PublishedWeights(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "96 MB",
)
ALEXNET = PublishedWeights(
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "244 MB",
)
VGG16 = PublishedWeights(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "553 MB",
)
LPIPS_ALEXNET_HEADS = PublishedWeights(
    "lpips-v0.1-alex-df73285e.pth",
    f"{_LPIPS_HEADS}/lpips/weights/v0.1/alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "6 kB",
)
LPIPS_VGG16_HEADS = PublishedWeights(
    "lpips-v0.1-vgg-a78928a0.pth",
    f"{_LPIPS_HEADS}/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "7 kB",
)


def published_weights_path(published: PublishedWeights) -> Path:
    """Where the file of these weights lies, or would lie, on this machine."""
    return Path(torch.hub.get_dir()) / "checkpoints" / published.file_name


def fetch_published_weights(published: PublishedWeights) -> Path:
    """The local file of these weights, downloaded on first use and checked against its SHA-256 every time.

    Hashing costs about a second per 500 MB.

    Raises:
        DownloadError: the file is not there and cannot be downloaded.
        CheckpointError: the file that is there has other bytes.
        ResourceError: the cache cannot be written to.
    """
    path = published_weights_path(published)
    if not path.exists():
        make_directory(path.parent)
        # One process of several downloads, the others find the file.
        with explain_write_errors(path), lock(path.with_suffix(".lock"), in_use=None):
            if not path.exists():
                _download(published, path)
    if sha256_of_file(path) != published.sha256:
        raise CheckpointError(f"{path} is not the published file (its SHA-256 differs): delete it and try again")
    return path


def _download(published: PublishedWeights, path: Path) -> None:
    advice = f"fetch {published.url} on a machine with a network and put it at {path}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadError(f"{published.file_name} is not in the cache and HF_HUB_OFFLINE is set: {advice}")
    _log.warning("downloading %s (%s) from %s", published.file_name, published.size, published.url)
    try:
        torch.hub.download_url_to_file(published.url, str(path), hash_prefix=published.sha256, progress=False)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = explain_network_failure(error)
        raise DownloadError(f"could not download {published.file_name}: {reason}; {advice}") from error
    except RuntimeError as error:
        raise DownloadError(f"{published.url} gave other bytes than expected, none kept: {advice}") from error
