"""`--nproc 2` as a person meets it: signals, sudden deaths, what lies in the working directory, who may connect."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import PROGRAM, SOURCE, workers_of
from tests.training.small_runs import phase, recipe_for


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a training in two processes that would take days, in a directory with somebody's own `torch.py`."""
    recipe = recipe_for(tmp_path, phase(steps=1_000_000), checkpoints={"every": 1_000_000})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd/torch.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-c", PROGRAM, "train-ae", tmp_path / "recipe.yaml", "--nproc", "2"]
        started.append(
            subprocess.Popen(
                [*command, "--device", "cpu"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path / "cwd",
                env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
                process_group=0,  # as a shell does for what runs in the foreground
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for_the_first_step(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert any(line.startswith("full ") for line in process.stderr)


def addresses_listened_on(pid: int) -> set[str]:
    """Local addresses, in the kernel's hexadecimal, of the sockets that a process listens on."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if os.path.lexists(link)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].split(":")[0])
    return found


def assert_saved(folder: Path) -> None:
    assert list((folder / "run/checkpoints").glob("step_*/state.json"))


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into Linux's /proc")


@needs_proc
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_stop_from_the_terminal_saves_and_nothing_strange_runs_or_listens(
    number: int, start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start()
    wait_for_the_first_step(process)
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert {address for worker in workers_of(process.pid) for address in addresses_listened_on(worker)} <= loopback
    os.killpg(process.pid, number)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number, stderr
    assert stderr.splitlines()[-1].startswith(f"dcae: stopped by {signal.Signals(number).name} after step ")
    assert stderr.count("dcae:") == 1
    assert_saved(tmp_path)
    assert not (tmp_path / "executed").exists()


@needs_proc
def test_workers_save_and_leave_when_the_launcher_is_killed(
    start: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start()
    wait_for_the_first_step(process)
    workers = workers_of(process.pid)
    process.kill()
    stderr = process.communicate(timeout=120)[1]  # to the end, which comes when the last worker has left
    assert len(workers) == 2
    assert "dcae: stopped by SIGTERM after step " in stderr
    assert_saved(tmp_path)


@needs_proc
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_worker_is_named_in_one_line(victim: int, start: Callable[[], subprocess.Popen[str]]) -> None:
    process = start()
    wait_for_the_first_step(process)
    os.kill(workers_of(process.pid)[victim], signal.SIGKILL)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 4, stderr
    assert stderr.splitlines()[-1].startswith(f"dcae: process {victim} was killed (SIGKILL)"), stderr
    assert "gloo" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(20))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_at_any_moment_has_its_code(
    repetition: int, number: int, start: Callable[[], subprocess.Popen[str]]
) -> None:
    process = start()
    time.sleep(1 + repetition / 4)
    os.killpg(process.pid, number)
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("variable", "value"), [("RANK", "abc"), ("WORLD_SIZE", "two")])
def test_an_environment_of_nonsense_is_named(variable: str, value: str, dcae, tmp_path: Path, monkeypatch) -> None:
    recipe = recipe_for(tmp_path, phase(steps=1))
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    monkeypatch.setenv(variable, value)
    dcae("train-ae", tmp_path / "recipe.yaml", "--device", "cpu").assert_fails(2, variable, value)
