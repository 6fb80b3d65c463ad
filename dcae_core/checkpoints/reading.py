"""Tensors out of files that may be damaged or hostile. Nothing here executes what it reads."""

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dcae_core.errors import CheckpointError
from dcae_core.files import sha256_of_file

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
_MAX_JSON_BYTES = 16 << 20


def read_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of one checkpoint file, on the CPU.

    Reads safetensors; `.pt`, `.pth`, `.ckpt` and `.bin` only as plain tensors (`weights_only=True`), taking the
    entry "state_dict" where there is one. Costs one copy of the file in memory, and with `sha256` one more pass.

    Args:
        path: the file.
        sha256: what its bytes must hash to, where that is known.

    Raises:
        CheckpointError: missing, damaged, of an unknown kind, holding anything but tensors, or with NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights file {path}")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{path}: weights are read from {', '.join(WEIGHT_SUFFIXES)} files only")
    if sha256 is not None and sha256_of_file(path) != sha256:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the recorded {sha256[:12]}...; fetch it again")
    weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {key} has NaN or infinite values; this checkpoint cannot be used")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: missing, unreadable, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is too large for a configuration file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def require_scaling_factor(value: object, path: Path) -> float | None:
    """The scaling factor that a configuration file gives, None where it gives none.

    Raises:
        CheckpointError: it is no finite number above 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: scaling_factor must be a finite number above 0, not {value!r}")
    return float(value)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); fetch or write it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and was not loaded, since such a file can run code; "
            "ask for a safetensors file, or convert it where you trust it"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no torch checkpoint; fetch it again") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors (nor one under 'state_dict')")
    return dict(loaded)
