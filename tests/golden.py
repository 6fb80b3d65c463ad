"""Golden weights and values, rebuilt by the rule of tests/fixtures/golden/fill.py."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.fixtures.golden.fill import fill

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


def golden_tensors(name: str) -> dict[str, Tensor]:
    """The stored tensors of one golden file."""
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_state(shapes: dict[str, list[int]], prefix: str = "") -> dict[str, Tensor]:
    """Weights drawn from each key's own name, for a list of keys and shapes in the original layout."""

    def draw(key: str) -> Tensor:
        return torch.from_numpy(np.asarray(fill(key, tuple(shapes[key]))))

    with ThreadPoolExecutor() as threads:
        return dict(zip((prefix + key for key in shapes), threads.map(draw, shapes), strict=True))


def golden_noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """The standard normal noise that belongs to a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


@cache
def state_dict_keys() -> dict:
    """Key lists of the published checkpoints: "autoencoders", "original", "diffusers"."""
    return json.loads((GOLDEN / "state_dict_keys.json").read_text())


def relative_error(measured: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((measured.double() - expected.double()).norm() / expected.double().norm())
