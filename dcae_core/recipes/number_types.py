"""Number types as recipes have them: short (fp32) for computing, in full (float32) for storing; both are understood."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

_IN_FULL = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHORT = {full: short for short, full in _IN_FULL.items()}


def _shorten(name: Any) -> Any:
    return _SHORT.get(name, name) if isinstance(name, str) else name


def _expand(name: Any) -> Any:
    return _IN_FULL.get(name, name) if isinstance(name, str) else name


ComputingType = Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_shorten)]
StoredType = Annotated[Literal["float16", "bfloat16", "float32"], BeforeValidator(_expand)]
