"""The machine that a benchmark runs on: what it is, and the two rates that bound everything computed on it."""

import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("dcae", "torch", "diffusers")
_MATRIX_SIDE = {"cpu": 2048}
_MATRIX_SIDE_ELSEWHERE = 8192
_COPY_BYTES = {"cpu": 2**28}
_COPY_BYTES_ELSEWHERE = 2**31
_TRIALS = 5


@dataclass(frozen=True)
class Machine:
    """What figures must be read beside.

    Attributes:
        device: the processor's or accelerator's own name.
        threads: that torch computes with on the CPU.
        system: operating system and architecture.
        versions: of Python and of the packages that matter.
        dtype: number type that the rates below are for.
        matmul_flops: floating-point operations per second of a large square matrix product: the limit of computing.
        copy_bytes: bytes per second, read and written together, of a large copy: the limit of moving.
    """

    device: str
    threads: int
    system: str
    versions: dict[str, str]
    dtype: str
    matmul_flops: float
    copy_bytes: float

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Name the machine and measure its two rates, the best of five trials each; takes seconds."""
    return Machine(
        device=_device_name(device),
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        versions={"python": platform.python_version()} | _versions() | {"torch": torch.__version__},  # with its build
        dtype=str(dtype).removeprefix("torch."),
        matmul_flops=_matmul_rate(device, dtype),
        copy_bytes=_copy_rate(device),
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@torch.inference_mode()
def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = _MATRIX_SIDE.get(device.type, _MATRIX_SIDE_ELSEWHERE)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best_seconds(device, lambda: torch.mm(a, b, out=out))


@torch.inference_mode()
def _copy_rate(device: torch.device) -> float:
    source = torch.zeros(_COPY_BYTES.get(device.type, _COPY_BYTES_ELSEWHERE), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(device, lambda: target.copy_(source))


def _best_seconds(device: torch.device, call: Any) -> float:
    call()
    seconds = []
    for _ in range(_TRIALS):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
