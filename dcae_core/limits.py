"""How much is taken from a file that a stranger may have made, and the memory that is counted before it is taken.

docs/security.md says what each limit is for and how to raise it.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcae_core.errors import ResourceError, printable

MAX_IMAGE_SIDE = 1 << 18  # pixels; rows and columns are padded to whole latents, so a line of pixels becomes a band
MAX_FILE_BYTES = 1 << 31  # of one image, as a file of its own or in a tar
MAX_LIST_BYTES = 1 << 30  # of a file list: some ten million paths
MAX_CLASSES = 100_000  # ImageNet-21k has 21,841

_COUNTED_FROM = 256 << 20  # bytes; what is smaller is never what fills a memory
_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process can still take without swapping; None where the system does not say.

    Counts what the machine has free, the container's limit and the process's own (`ulimit -v`).
    """
    limits = [limit for limit in (_free_on_machine(), _free_in_container(), _free_in_process()) if limit is not None]
    return max(min(limits), 0) if limits else None


class _WindowsMemory(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        *(
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("free", ctypes.c_uint64),
        ),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows_memory() -> _WindowsMemory | None:
    memory = _WindowsMemory(length=ctypes.sizeof(_WindowsMemory))
    libraries = getattr(ctypes, "windll", None)
    found = libraries is not None and libraries.kernel32.GlobalMemoryStatusEx(ctypes.byref(memory))
    return memory if found else None


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = _windows_memory()
    return None if memory is None else memory.total


def _free_on_machine() -> int | None:
    if (memory := _windows_memory()) is not None:
        return memory.free
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _free_in_container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        reclaimable = int(fields["inactive_file"])  # pages of files that the system gives up before it runs out
        return limit - int((_CGROUP / "memory.current").read_text()) + reclaimable
    except (OSError, KeyError, ValueError):  # no such file, or "max"
        return None


def _free_in_process() -> int | None:
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None


class _Promises:
    """What threads of this process have been promised, but may not have taken yet."""

    def __init__(self) -> None:
        self.total = 0
        self.changed = threading.Condition()


_promises = _Promises()


@contextmanager
def memory_for(num_bytes: int, what: str) -> Iterator[None]:
    """Take so much memory, at most, inside the body; ResourceError before it where that is more than is free.

    Threads that would together take too much take turns. `what` needs it, for the message.
    """
    if num_bytes < _COUNTED_FROM:
        yield
        return
    with _promises.changed:
        while (free := free_memory()) is not None and num_bytes > free - _promises.total:
            if _promises.total == 0:
                if _give_back_freed_memory() and num_bytes <= (free_memory() or 0):
                    break
                raise ResourceError(
                    f"{printable(what)} needs about {_gigabytes(num_bytes)} of memory, {_gigabytes(free)} are free; "
                    "close other programs, leave it out, or take a machine with more"
                )
            _promises.changed.wait()
        _promises.total += num_bytes
    try:
        yield
    finally:
        with _promises.changed:
            _promises.total -= num_bytes
            _promises.changed.notify_all()


def _give_back_freed_memory() -> bool:
    """Ask the C library for what it keeps of memory that threads have freed; False where it cannot be asked."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
