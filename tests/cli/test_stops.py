"""Ctrl-C, SIGTERM and SIGHUP at any moment of every long command that writes, in one process and in two.

After each: the code of the signal, nothing half written, and the same command run again ends with the bytes of an
undisturbed run. `DCAE_STOPS=20 pytest -n 0 -m slow -s tests/cli/test_stops.py` prints what came of them as a table.

All processes are forked from this one, so that none of them spends its time on imports; stops while those are under way
are in `test_several_processes.py`.
"""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dcae_cli.processes
import dcae_core.pipelines.evaluation.evaluate
import dcae_core.training.train_ae
import dcae_core.training.train_diffusion  # noqa: F401  here, lest every child imports them
from tests.hostile import scenes
from tests.hostile.child import Outcome
from tests.metrics.cheap_inception import in_place_of_inception
from tests.processes import ForkedWorker

STOPS = int(os.environ.get("DCAE_STOPS", "20"))  # of each signal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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
class Stop:
    """A signal, so many seconds after the handlers of the command stand."""

    number: signal.Signals
    seconds: float


@dataclass(frozen=True)
class Way:
    """A command, the folder it starts from, and its undisturbed course."""

    command: tuple[object, ...]
    folder: Path
    pristine: Path
    before: scenes.Tree
    after: scenes.Tree
    seconds: float

    def stops(self, number: signal.Signals) -> Iterator[Stop]:
        """One in each of as many equal spans of the course."""
        moments = random.Random(f"{self.command} {number}")
        for span in range(STOPS):
            yield Stop(number, (span + moments.random()) / STOPS * self.seconds)


def _way(name: str, processes: int, place: Path) -> Way:
    folder, pristine = place / "work", place / "pristine"
    command = scenes.SCENES[name].command
    if processes > 1:
        command = (*command, "--nproc", processes)
    scenes.build(name, folder)
    scenes.restore(folder, pristine)
    before = scenes.read_tree(folder)
    undisturbed = _run(folder, command)
    assert undisturbed.exit_code == 0, undisturbed.stderr
    return Way(command, folder, pristine, before, scenes.read_tree(folder), undisturbed.seconds)


def _run(folder: Path, command: tuple[object, ...], stop: Stop | None = None) -> Outcome:
    def prepare() -> None:
        dcae_cli.processes.subprocess.Popen = ForkedWorker
        if stop is not None:
            _send_from_aside(stop)

    return scenes.run_scene(folder, *command, prepare=prepare)


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


def _try(way: Way, stop: Stop) -> int:
    """One stop and the same command after it; the code that the stopped one ended with."""
    scenes.restore(way.pristine, way.folder)
    stopped = _run(way.folder, way.command, stop)
    assert stopped.exit_code in (0, 128 + stop.number), f"{stopped.exit_code}: {stopped.stderr}"
    stopped.assert_clean()
    scenes.assert_whole(way.folder, way.before, way.after)
    assert not scenes.leftovers(way.folder)
    if after := re.search(r"stopped by \w+ after step (\d+)", stopped.stderr):
        assert (way.folder / "run/checkpoints/latest").read_text() == f"step_{after[1]}\n"
    again = _run(way.folder, way.command)
    assert again.exit_code == 0, f"again: {again.exit_code}: {again.stderr}"
    now = scenes.read_tree(way.folder)
    assert now == way.after, f"other bytes: {sorted(set(now.items()) ^ set(way.after.items()))}"
    return stopped.exit_code


@pytest.mark.parametrize(
    ("name", "processes"),
    [(name, 1) for name in (*scenes.IN_TWO, "reconstruct")] + [(name, 2) for name in scenes.IN_TWO],
)
def test_stops_at_any_moment(name: str, processes: int, tmp_path: Path) -> None:
    way = _way(name, processes, tmp_path)
    failures = []
    for number in SIGNALS:
        codes: Counter[int] = Counter()
        for stop in way.stops(number):
            code = 0
            try:
                while code == 0:  # it came too late
                    codes[code := _try(way, stop)] += 1
                    stop = Stop(number, stop.seconds * 0.8)
            except AssertionError as failure:
                failures.append(f"{stop}: {failure}")
        print(f"{name} | {processes} | {number.name} | {dict(codes)}", flush=True)
    assert not failures, f"{len(failures)} of {3 * STOPS}\n" + "\n".join(failures)
