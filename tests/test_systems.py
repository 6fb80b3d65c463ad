"""What only POSIX systems have is used where it is there, and missed nowhere."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dcae_core.data.latents import LatentDataset
from dcae_core.devices import memory_of
from dcae_core.errors import UsageError
from dcae_core.files import lock, open_for_reading, read_at, read_into
from dcae_core.limits import physical_memory
from tests.latents.datasets import write_dataset
from tests.test_architecture import CLI_FILES, CORE_FILES, ROOT, imported_modules, name_of, package_of, parse

POSIX_ONLY = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty")
GUARDED = {"dcae_core/limits.py": {"resource"}}  # inside a `try`
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in CORE_FILES + CLI_FILES
    if file.name != "__main__.py"
]


def test_every_module_imports_where_posix_modules_are_missing() -> None:
    script = (
        "import importlib, os, signal, sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'termios')))\n"
        "for name in ('SIGHUP', 'SIGTSTP', 'SIGSTOP', 'SIGCONT', 'SIGKILL', 'pthread_sigmask', 'pthread_kill'):\n"
        "    delattr(signal, name)\n"
        f"for name in {MODULES}: importlib.import_module(name)\n"
        "from dcae_core.limits import free_memory\n"
        "print('imported', free_memory() is None or free_memory() > 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert run.stdout == "imported True\n", run.stderr[-2000:]


@pytest.mark.parametrize("file", CORE_FILES + CLI_FILES, ids=name_of)
def test_no_function_needs_a_module_that_only_posix_has(file: Path) -> None:
    used = {package_of(module) for module in imported_modules(parse(file))} & set(POSIX_ONLY)
    assert used <= GUARDED.get(name_of(file), set())


def test_a_read_at_a_place_needs_no_pread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    descriptor = open_for_reading(tmp_path / "file")
    expected = [read_at(descriptor, 10, 95), read_at(descriptor, 4, 7)]
    for name in ("pread", "preadv"):
        monkeypatch.delattr(os, name)
    row = np.zeros(2, dtype="<u4")
    assert [read_at(descriptor, 10, 95), read_at(descriptor, 4, 7)] == expected
    assert read_into(descriptor, row.data, 8) == 8
    assert row.tobytes() == bytes(range(8, 16))
    os.close(descriptor)


def test_latents_are_read_without_pread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_dataset(tmp_path / "latents", [3, 4])
    expected = LatentDataset(tmp_path / "latents")[3]
    for name in ("pread", "preadv"):
        monkeypatch.delattr(os, name)
    assert (LatentDataset(tmp_path / "latents")[3][0] == expected[0]).all()


def test_the_memory_of_a_machine_that_tells_nothing_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delattr(os, "sysconf")
    assert physical_memory() is None
    assert memory_of(torch.device("cpu")) > 0


def hold(path: Path, held) -> None:
    with lock(path, "in use"):
        held.set()
        time.sleep(60)


def test_a_lock_refuses_waits_and_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("mine")
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold, args=(path, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(UsageError, match="in use"), lock(path, "in use"):
        pytest.fail("held twice")
    os.kill(holder.pid, signal.SIGKILL)
    with lock(path, None):
        pass
    assert path.read_text() == "mine"
    with lock(path, None, stays=False):
        pass
    assert not path.exists()
    holder.join()
