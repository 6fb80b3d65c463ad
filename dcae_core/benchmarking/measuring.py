"""Time, memory and the machine's own limits."""

import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

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
        device=device_name(device),
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


def device_name(device: torch.device) -> str:
    """The processor's or accelerator's own name."""
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
    """Freed memory that the C library keeps would hide what the next call allocates."""
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


_WARM_UP_CALLS = {"cpu": 1}
_WARM_UP_CALLS_ELSEWHERE = 3  # compiled code is captured at the second call

UNTIMED_ROUNDS = 2  # to warm up, and to measure memory

ProgressNote = Callable[[int, int, str], None]
"""progress(done, total, what) after each round, untimed ones among them."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing it: `call` does it once; a tensor it returns is compared with what the first contestant returns.

    `held_bytes` is the memory of its networks, asked once it is warm.
    """

    name: str
    call: Callable[[], object]
    held_bytes: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Subject:
    """What is measured, and the ways of doing it, ours first.

    Attributes:
        setting: of what size and type, in words.
        items: images, latents or samples that one call deals with.
        macs: multiply-accumulates of one call as the definition counts them, or None where nothing is multiplied.
        moved_bytes: inputs and outputs of one call; the networks' own bytes come on top.
    """

    what: str
    setting: str
    items: int
    macs: int | None
    moved_bytes: int
    contestants: list[Contestant]


@dataclass
class Measurement:
    """What one contestant took.

    Attributes:
        seconds: of each timed call, by the clock on the wall.
        cpu_seconds: of the same calls, added up over the threads of this process.
        held_bytes: of its networks.
        peak_bytes: the most that a call had above what was held before it; None where that cannot be known.
        difference: relative L2 distance of its output from the first contestant's; None where there is no output.
    """

    subject: Subject
    implementation: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    held_bytes: int | None = None
    peak_bytes: int | None = None
    difference: float | None = None

    @property
    def median_seconds(self) -> float:
        """The middle one of the calls."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest call, as a fraction of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_seconds

    @property
    def items_per_second(self) -> float:
        """Images, latents or samples per second."""
        return self.subject.items / self.median_seconds

    @property
    def flops(self) -> float | None:
        """Operations per second, counted as the definition has them, whatever algorithm does them."""
        return None if self.subject.macs is None else 2 * self.subject.macs / self.median_seconds

    def limit_seconds(self, machine: Machine) -> float:
        """What a call cannot be faster than: its operations at the rate of matrix products, or its bytes once each.

        A faster algorithm than the definition's (Winograd's) may beat the first.
        """
        computing = 2 * (self.subject.macs or 0) / machine.matmul_flops
        return max(computing, (self.subject.moved_bytes + (self.held_bytes or 0)) / machine.copy_bytes)

    def as_json(self, machine: Machine) -> dict[str, Any]:
        """As plain values."""
        subject = self.subject
        return {
            "what": subject.what,
            "setting": subject.setting,
            "implementation": self.implementation,
            "items": subject.items,
            "median_seconds": self.median_seconds,
            "spread": self.spread,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "items_per_second": self.items_per_second,
            "macs": subject.macs,
            "flops": self.flops,
            "share_of_matmul": None if self.flops is None else self.flops / machine.matmul_flops,
            "limit_seconds": self.limit_seconds(machine),
            "held_bytes": self.held_bytes,
            "peak_bytes": self.peak_bytes,
            "difference": self.difference,
        }


def measure(
    subject: Subject, repeats: int, device: torch.device, progress: ProgressNote = lambda done, total, what: None
) -> list[Measurement]:
    """Warm every contestant up, then time `repeats` rounds in which each goes once, in turns of alternating order."""
    rounds = UNTIMED_ROUNDS + repeats
    measurements = [Measurement(subject, contestant.name) for contestant in subject.contestants]
    pairs = list(zip(subject.contestants, measurements, strict=True))
    first: object = None
    for contestant, measurement in pairs:
        output: object = None
        for _ in range(_WARM_UP_CALLS.get(device.type, _WARM_UP_CALLS_ELSEWHERE)):
            output = contestant.call()
        first = output if first is None else first
        if isinstance(output, Tensor) and isinstance(first, Tensor):
            measurement.difference = _relative_difference(output, first)
        del output
    del first
    progress(1, rounds, subject.what)
    for contestant, measurement in pairs:
        measurement.peak_bytes = peak_bytes(contestant.call, device)
        measurement.held_bytes = contestant.held_bytes()
    progress(2, rounds, subject.what)
    for number in range(repeats):
        for contestant, measurement in pairs if number % 2 == 0 else reversed(pairs):
            _time(contestant, measurement, device)
        progress(UNTIMED_ROUNDS + number + 1, rounds, subject.what)
    return measurements


def advantage(measurement: Measurement, over: Measurement) -> float:
    """How many times faster: the median over the rounds, in each of which both ran side by side."""
    return median(theirs / ours for ours, theirs in zip(measurement.seconds, over.seconds, strict=True))


def _time(contestant: Contestant, measurement: Measurement, device: torch.device) -> None:
    synchronise(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    contestant.call()
    synchronise(device)
    measurement.seconds.append(time.perf_counter() - start)
    measurement.cpu_seconds.append(time.process_time() - cpu_start)


def _relative_difference(output: Tensor, reference: Tensor) -> float:
    reference = reference.double()
    return float((output.double() - reference).norm() / reference.norm())
