"""How much memory a call needs beyond what was held before it."""

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

_RESET_PEAK = "5"  # the kernel's word for it, see proc_pid_clear_refs(5)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Run `call` once; its peak of memory above what was held when it began, or None where that cannot be known.

    On CUDA what torch allocates; on a CPU, where the kernel tells (Linux), what the process has resident.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _return_free_memory()
    if device.type != "cpu" or not _reset_peak():
        call()
        return None
    before = _resident_bytes("VmRSS")
    call()
    return max(0, _resident_bytes("VmHWM") - before)


def held_bytes(*networks: nn.Module) -> int:
    """Bytes of all parameters and buffers, among them what preparation has added."""
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    return sum(tensors.values())


def _return_free_memory() -> None:
    """Freed memory that the C library keeps would hide what the next call takes anew."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"the kernel does not tell {field}")
