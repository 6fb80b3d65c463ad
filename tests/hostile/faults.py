"""A fault at one chosen moment of a command: every write, flush, rename, removal and read below a directory counts.

What Python writes and reads passes the raw file below its buffers; what libraries write by themselves (safetensors,
torch.save) counts as one write. To be installed in a child process: nothing here is undone.
"""

import builtins
import errno
import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

KILLED = -signal.SIGKILL  # exit code of a child that a fault killed
_WRITES = {"open", "write", "flush", "rename", "make"}  # what a full disk refuses
_OF_FAULT = {"kill": _WRITES | {"remove", "read"}, "full": _WRITES, "vanish": {"read"}, "cut": {"read"}}
FAULTS = tuple(_OF_FAULT)


class Point(NamedTuple):
    """One moment at which a fault may come: what the command was about to do, and to which file."""

    kind: str
    file: str


def points_of(fault: str, points: list[Point]) -> list[int]:
    """The numbers of those points at which this fault may come.

    Nobody else cuts what is half written, and a log that was cut is drawn as it stands.
    """
    numbers = [number for number, point in enumerate(points) if point.kind in _OF_FAULT[fault]]
    if fault == "cut":
        spared = (".partial", "metrics.jsonl")
        return [number for number in numbers if not any(name in points[number].file for name in spared)]
    return numbers


@dataclass
class Injection:
    """Count points below `root`, each a line of `log`; let `fault` come at number `at`.

    A disk that is full stays so, and a file that has vanished does not come back, as long as the process lives. A file
    that is cut has lost its second half for good, as if somebody were writing it anew.
    """

    root: Path
    log: Path | None = None
    fault: str | None = None
    at: int = -1

    def install(self) -> None:
        """Stand between this process and its files from now on."""
        self._count, self._full, self._gone = 0, False, ""
        self._turn = threading.RLock()
        self._prefix = str(self.root.resolve()) + os.sep
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if self.log else None
        self._os = {name: getattr(os, name) for name in ("open", "write", "readlink", "getcwd")}
        self._wrap(os, "fsync", "flush", lambda descriptor: descriptor)
        for name in ("replace", "rename"):
            self._wrap(os, name, "rename", lambda source, target: target)
        for name in ("unlink", "remove", "rmdir"):
            self._wrap(os, name, "remove", lambda path: path)
        self._wrap(os, "mkdir", "make", lambda path, mode=0: path)
        self._replace_open()
        self._replace_libraries()
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage(path)._replace(free=0) if self._full else usage(path)  # type: ignore[assignment]

    def reach(self, kind: str, file: Any, tear: Callable[[], object] = lambda: None) -> None:
        """One point. `tear` does half of the work, as a kill or the end of the disk would leave it."""
        path = self._path(file)
        if not path.startswith(self._prefix):
            return
        with self._turn:
            if self._log is not None:
                self._os["write"](self._log, f"{kind}\t{path.removeprefix(self._prefix)}\n".encode())
            now = self._count == self.at
            self._count += 1
            if now and self.fault == "kill":
                tear()
                os.kill(os.getpid(), signal.SIGKILL)
            if now and self.fault == "full":
                self._full = True
                tear()
            if now and self.fault == "vanish":
                self._gone = path
            if now and self.fault == "cut" and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
        if self._full and kind in _WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if kind == "read" and path == self._gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _path(self, file: Any) -> str:
        if isinstance(file, int):
            try:
                return self._os["readlink"](f"/proc/self/fd/{file}")
            except OSError:
                return ""
        return os.path.abspath(os.fsdecode(file))

    def _wrap(self, place: Any, name: str, kind: str, file_of: Callable[..., Any]) -> None:
        original = getattr(place, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not {"dir_fd", "src_dir_fd"} & options.keys():
                self.reach(kind, file_of(*arguments))
            elif options.get("dir_fd") is not None:
                self.reach(kind, os.path.join(self._path(options["dir_fd"]), os.fsdecode(file_of(*arguments))))
            return original(*arguments, **options)

        setattr(place, name, wrapped)
        if original in os.supports_dir_fd:
            os.supports_dir_fd.add(wrapped)

    def _replace_open(self) -> None:
        injection, plain = self, builtins.open

        class CountedFile(io.FileIO):
            """A raw file each of whose writes is a point."""

            def write(self, content: Any) -> int:
                half = memoryview(content).cast("B")
                half = half[: len(half) // 2]
                injection.reach("write", self.fileno(), lambda: io.FileIO.write(self, half))
                return super().write(content)

        def counted(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            writes = bool(set(mode) & set("wax+"))
            if isinstance(file, int) or not injection._path(file).startswith(injection._prefix):
                return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
            injection.reach("open" if writes else "read", file)
            if not writes:
                return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = CountedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if more.get("dir_fd") is None and not flags & getattr(os, "O_DIRECTORY", 0):
                writes = flags & (os.O_WRONLY | os.O_RDWR)
                if writes or not os.path.isdir(path):
                    self.reach("open" if writes else "read", path)
            return self._os["open"](path, flags, *rest, **more)

        builtins.open = io.open = counted  # type: ignore[assignment]
        os.open = opened
        os.supports_dir_fd.add(opened)

    def _replace_libraries(self) -> None:
        save, serialise, read = torch.save, safetensors.torch.serialize_file, safetensors.safe_open

        def written(write: Callable[[], object], path: Any) -> None:
            def tear() -> None:
                write()
                os.truncate(path, os.path.getsize(path) // 2)

            try:
                self.reach("write", path, tear)
            except OSError:
                raise RuntimeError("the library could not write, and does not say why") from None
            write()

        def torch_save(thing: Any, file: Any, *rest: Any, **more: Any) -> None:
            if isinstance(file, str | os.PathLike):
                written(lambda: save(thing, file, *rest, **more), file)
            else:
                save(thing, file, *rest, **more)

        def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
            written(lambda: serialise(tensors, filename, metadata=metadata), filename)

        def safe_open(filename: Any, *rest: Any, **more: Any) -> Any:
            self.reach("read", filename)
            return read(filename, *rest, **more)

        torch.save = torch_save
        safetensors.torch.serialize_file = serialize_file
        for module in list(sys.modules.values()):
            if getattr(module, "safe_open", None) is read:
                module.safe_open = safe_open  # type: ignore[attr-defined]


def read_log(log: Path) -> list[Point]:
    """The points that a command passed."""
    return [Point(*line.split("\t", 1)) for line in log.read_text().splitlines()]
