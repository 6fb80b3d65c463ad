"""Where an evaluation keeps its finished parts, and what tells one evaluation from another."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def default_work_directory() -> Path:
    """`evaluations` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dcae" / "evaluations"


def evaluation_key(**ingredients: Any) -> str:
    """A name that is the same for the same evaluation and for no other: 16 hexadecimal digits.

    Args:
        ingredients: settings, fingerprints and hashes that results depend on, of types that JSON knows.
    """
    ingredients |= {"torch": torch.__version__, "dcae": version("dcae")}
    text = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
