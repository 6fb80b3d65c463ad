"""Ctrl-C, SIGTERM and SIGHUP at any moment of every long command that writes, in one process and in two.

After each: the code of the signal, nothing half written, and the same command run again ends with the bytes of an
undisturbed run. `DCAE_STOPS=20 pytest -m slow tests/cli/test_stops.py -s` prints what came of them as a table.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import save_file

import dcae_core.pipelines.evaluation.evaluate
import dcae_core.training.train_ae
import dcae_core.training.train_diffusion  # noqa: F401  here, lest every child imports them
from tests.hostile import scenes
from tests.hostile.child import Outcome
from tests.metrics.cheap_inception import in_place_of_inception
from tests.metrics.inception_weights import random_inception_state
from tests.processes import PROGRAM, SOURCE, workers_of

STOPS = int(os.environ.get("DCAE_STOPS", "20"))  # of each signal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IN_TWO = ("encode-dataset", "eval", "fid-ref", "sample", "train-ae", "train-diffusion")
_INCEPTION = ("--inception-weights", "../inception.safetensors")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into Linux's /proc"),
]


@pytest.fixture(scope="module", autouse=True)
def cheap_inception() -> Iterator[None]:
    with in_place_of_inception():
        yield


@dataclass(frozen=True)
class Way:
    """A command, the folder it starts from, and its undisturbed course; `seconds` are those in which it works."""

    command: tuple[object, ...]
    processes: int
    folder: Path
    pristine: Path
    before: scenes.Tree
    after: scenes.Tree
    seconds: float

    def run(self, stop: "Stop | None" = None) -> Outcome:
        """The command in its folder, stopped on the way if so asked."""
        return (_run_forked if self.processes == 1 else _run_launched)(self.folder, self.command, stop)


@dataclass(frozen=True)
class Stop:
    """A signal, so many seconds after the command began to work."""

    number: signal.Signals
    seconds: float


def _way(name: str, processes: int, place: Path) -> Way:
    folder, pristine = place / "work", place / "pristine"
    command = scenes.SCENES[name].command
    scenes.build(name, folder)
    if processes > 1 and name in ("eval", "fid-ref"):
        # A stand-in would not reach the processes that the launcher starts.
        save_file(random_inception_state(), place / "inception.safetensors")
        command = (*command, *_INCEPTION)
    if processes > 1 and name == "eval":
        reference = ("fid-ref", "--images", "images", "--resolution", 16, "--device", "cpu", "--out", "ref.npz")
        assert _run_launched(folder, (*reference, *_INCEPTION), None).exit_code == 0
    scenes.restore(folder, pristine)
    before = scenes.read_tree(folder)
    undisturbed = (_run_forked if processes == 1 else _run_launched)(folder, command, None)
    assert undisturbed.exit_code == 0, undisturbed.stderr
    return Way(command, processes, folder, pristine, before, scenes.read_tree(folder), undisturbed.seconds)


def _run_forked(folder: Path, command: tuple[object, ...], stop: Stop | None) -> Outcome:
    return scenes.run_scene(folder, *command, prepare=lambda: _send_from_aside(stop) if stop else None)


def _send_from_aside(stop: Stop) -> None:
    """Let a child of this process send it the stop, once the handlers of the command stand."""
    target = os.getpid()
    if os.fork() == 0:
        signal.alarm(0)
        while os.getppid() == target and not _catches(target, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(stop.seconds)
        if os.getppid() == target:
            os.kill(target, stop.number)
        os._exit(0)


def _catches(pid: int, number: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _run_launched(folder: Path, command: tuple[object, ...], stop: Stop | None) -> Outcome:
    """The command as from a terminal, in two processes; it works from the moment at which these meet."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": "cache"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, *map(str, command), "--nproc", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        process_group=0,
    )
    try:
        while process.poll() is None and not _have_met(process.pid):
            time.sleep(0.01)
        start = time.monotonic()
        if stop is not None:
            time.sleep(stop.seconds)
            if process.poll() is None:
                os.killpg(process.pid, stop.number)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    # Once all is done and the handlers are gone, a signal ends Python as it would any program: 128 + N to a shell.
    exit_code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Outcome(exit_code, stdout, stderr, 0, time.monotonic() - start)


def _have_met(launcher: int) -> bool:
    workers = workers_of(launcher)
    return len(workers) == 2 and _has_a_socket(workers[1])  # the first inherits one


def _has_a_socket(pid: int) -> bool:
    try:
        return any(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False  # it ended, or a descriptor was closed


def _try(way: Way, stop: Stop) -> int:
    """One stop and the same command after it; the code that the stopped one ended with."""
    scenes.restore(way.pristine, way.folder)
    stopped = way.run(stop)
    assert stopped.exit_code in (0, 128 + stop.number), f"{stopped.exit_code}: {stopped.stderr}"
    stopped.assert_clean()
    scenes.assert_whole(way.folder, way.before, way.after)
    assert not scenes.leftovers(way.folder)
    if after := re.search(r"stopped by \w+ after step (\d+)", stopped.stderr):
        assert (way.folder / "run/checkpoints/latest").read_text() == f"step_{after[1]}\n"
    again = way.run()
    assert again.exit_code == 0, f"again: {again.exit_code}: {again.stderr}"
    now = scenes.read_tree(way.folder)
    assert now == way.after, f"other bytes: {sorted(set(now.items()) ^ set(way.after.items()))}"
    return stopped.exit_code


@pytest.mark.parametrize(
    ("name", "processes"), [(name, 1) for name in (*IN_TWO, "reconstruct")] + [(name, 2) for name in IN_TWO]
)
def test_stops_at_any_moment(name: str, processes: int, tmp_path: Path) -> None:
    way = _way(name, processes, tmp_path)
    failures = []
    for number in SIGNALS:
        codes: Counter[int] = Counter()
        moments = random.Random(f"{name} {processes} {number}")
        for repetition in range(STOPS):
            stop = Stop(number, moments.uniform(0, way.seconds))
            try:
                codes[_try(way, stop)] += 1
            except AssertionError as failure:
                failures.append(f"{number.name} {repetition}, after {stop.seconds:.3f} s: {failure}")
        landed = STOPS - codes[0]
        print(
            f"{name} | {processes} | {number.name} | {landed} of {STOPS} | {dict(codes)} | {codes.total()}", flush=True
        )
    assert not failures, f"{len(failures)} of {3 * STOPS}\n" + "\n".join(failures)
