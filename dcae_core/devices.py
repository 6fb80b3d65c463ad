"""Names of devices and number types, as people type them, turned into what torch wants."""

import functools
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from dcae_core.errors import ResourceError, UsageError, unknown_name
from dcae_core.limits import physical_memory

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_INSTRUCTIONS = {"AVX512": "AVX-512", "AVX2": "AVX2"}  # torch's names and ours
_CPUINFO = Path("/proc/cpuinfo")

_log = logging.getLogger(__name__)

_ASSUMED_MEMORY = 8 << 30  # bytes, where the system does not say
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parse_dtype(name: str) -> torch.dtype:
    """The torch type called `name`: fp32, bf16 or fp16, short or in full.

    Raises:
        UsageError: there is no such type.
    """
    if name not in DTYPES:
        raise unknown_name("--dtype", name, DTYPES)
    return DTYPES[name]


def select_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` takes CUDA if there is one, else Apple's MPS, else the CPU.

    Under torchrun a CUDA device without a number is the one of this process (`LOCAL_RANK`).

    Raises:
        UsageError: `name` is no device name.
        ResourceError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        _log.info("computing on %s", name)
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise UsageError(f"unknown device {name!r}; choose from auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda":
        return _cuda_device(int(number or os.environ.get("LOCAL_RANK", "0")))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device mps: this machine has no Apple GPU that torch can use; take cpu")
    return torch.device(kind)


def _cuda_device(index: int) -> torch.device:
    if not torch.cuda.is_available():
        build = "is built without CUDA" if torch.version.cuda is None else "finds no NVIDIA GPU or driver"
        raise ResourceError(f"device cuda: torch {torch.__version__} {build}; take cpu or auto")
    count = torch.cuda.device_count()
    if index >= count:
        raise ResourceError(f"device cuda:{index}: this machine has {count} CUDA device(s), numbered from 0")
    return torch.device("cuda", index)


@contextmanager
def allow_tf32(allowed: bool | None) -> Iterator[None]:
    """Within it, NVIDIA GPUs round the inputs of float32 products and convolutions to 10 bits (TF32), or they do not.

    None leaves PyTorch's settings as they are; its own default is that convolutions round and matrix products do not.
    """
    if allowed is None:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def memory_of(device: torch.device) -> int:
    """Bytes of memory that belong to `device`; for the CPU also bounded by the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    total = physical_memory() or _ASSUMED_MEMORY
    for path in map(Path, _CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return total


class ProcessorFamily(NamedTuple):
    """Processors for which one choice of algorithms holds.

    Attributes:
        vendor: Intel, AMD, or empty where it is neither or cannot be known.
        instructions: the widest vectors it has: AVX-512, AVX2, or empty where it has neither or that cannot be known.
    """

    vendor: str
    instructions: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.instructions}" if all(self) else "unknown"


@functools.cache
def processor_family() -> ProcessorFamily:
    """The family of this machine's processor, the same at each call: what it is, not how fast it proves to be."""
    if _CPUINFO.is_file():
        return family_in_cpuinfo(_CPUINFO.read_text(encoding="ascii", errors="replace"))
    vendor = next((ours for theirs, ours in _VENDORS.items() if theirs in platform.processor()), "")
    return ProcessorFamily(vendor, _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ""))


def family_in_cpuinfo(text: str) -> ProcessorFamily:
    """The family that Linux describes in `text`, the content of /proc/cpuinfo, by its first processor."""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    instructions = "AVX-512" if "avx512f" in flags else "AVX2" if {"avx2", "fma"} <= flags else ""
    return ProcessorFamily(_VENDORS.get(facts.get("vendor_id", ""), ""), instructions)
