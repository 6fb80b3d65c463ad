"""One of two processes killed at every write, flush, rename, removal and read of each command that takes `--nproc`.

The other ends within a minute with a line that names the dead one, nothing earlier is lost, and the same command run
again ends with the bytes of an undisturbed run.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dcae_cli.processes
import dcae_core.pipelines.evaluation.evaluate
import dcae_core.training.train_ae
import dcae_core.training.train_diffusion  # noqa: F401  here, lest every child imports them
from tests.hostile import faults, scenes
from tests.hostile.child import Outcome
from tests.hostile.faults import Injection
from tests.hostile.ways import Undisturbed, try_all
from tests.metrics.cheap_inception import in_place_of_inception
from tests.processes import ForkedWorker

_SECONDS_TO_FOLLOW = 60


@pytest.fixture(scope="module", autouse=True)
def cheap_inception() -> Iterator[None]:
    with in_place_of_inception():
        yield


def _run(folder: Path, name: str, prepare: Callable[[int], object] = lambda rank: None) -> Outcome:
    """The scene's command in two processes; `prepare` is called with its rank in each, just before the command."""

    def in_two() -> None:
        dcae_cli.processes.subprocess.Popen = ForkedWorker
        ForkedWorker.prepare = lambda worker: prepare(int(os.environ["RANK"]))

    return scenes.run_scene(folder, *scenes.SCENES[name].command, "--nproc", 2, prepare=in_two)


@pytest.fixture(scope="module", params=scenes.IN_TWO)
def ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Undisturbed]:
    """The undisturbed way of a command in two processes, with the points of the first and of the second."""
    place = tmp_path_factory.mktemp(request.param)
    folder, pristine = place / "work", place / "pristine"
    scenes.build(request.param, folder)
    scenes.restore(folder, pristine)
    before = scenes.read_tree(folder)
    outcome = _run(folder, request.param, lambda rank: Injection(folder, place / f"points-{rank}").install())
    assert outcome.exit_code == 0, outcome.stderr
    after = scenes.read_tree(folder)
    points = [faults.read_log(place / f"points-{rank}") for rank in (0, 1)]
    return [Undisturbed(request.param, folder, pristine, passed, before, after) for passed in points]


def _try(way: Undisturbed, victim: int, number: int) -> str:
    """A kill, and the same command after it."""

    def kill(rank: int) -> None:
        if rank == victim:
            Injection(way.folder, None, "kill", number).install()

    scenes.restore(way.pristine, way.folder)
    killed = _run(way.folder, way.name, kill)
    killed.assert_clean()
    assert killed.exit_code == 4, f"{killed.exit_code}: {killed.stderr}"
    assert killed.stderr.splitlines()[-1].startswith(f"dcae: process {victim} was killed (SIGKILL)"), killed.stderr
    assert killed.seconds < _SECONDS_TO_FOLLOW
    scenes.assert_whole(way.folder, way.before, way.after)
    again = _run(way.folder, way.name)
    assert again.exit_code == 0, f"again: {again.exit_code}: {again.stderr}"
    now = scenes.read_tree(way.folder)
    assert now == way.after, f"other bytes: {sorted(set(now.items()) ^ set(way.after.items()))}"
    return "same bytes"


def _try_all(way: Undisturbed, victim: int, tried: slice) -> None:
    numbers = faults.points_of("kill", way.points)
    fault = f"process {victim} of two killed"
    try_all(way, fault, numbers[tried], len(numbers), lambda number: _try(way, victim, number))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_partner_killed_at_some_points(ways: list[Undisturbed], victim: int) -> None:
    middle = len(faults.points_of("kill", ways[victim].points)) // 2
    _try_all(ways[victim], victim, slice(middle, middle + 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_partner_killed_at_every_point(ways: list[Undisturbed], victim: int) -> None:
    _try_all(ways[victim], victim, slice(None))
