"""A kill, a full disk and a vanished file at every write, flush, rename, removal and read of each writing command.

After each: a documented exit code and a line, nothing earlier lost, nothing half written under its own name; and the
same command run again ends with the bytes of an undisturbed run, or says what to do.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dcae_core.pipelines.evaluation.evaluate
import dcae_core.training.train_ae
import dcae_core.training.train_diffusion  # noqa: F401  here, lest every child imports them
from tests.hostile import faults, scenes
from tests.hostile.child import Outcome
from tests.hostile.faults import FAULTS, KILLED, Injection, Point
from tests.metrics.cheap_inception import in_place_of_inception

DOCUMENTED = {0, 2, 3, 4, 5}
_QUICK = 1  # points of each command and fault in the normal run


@pytest.fixture(scope="module", autouse=True)
def cheap_inception() -> Iterator[None]:
    with in_place_of_inception():
        yield


@dataclass(frozen=True)
class Undisturbed:
    """A command's whole way: the folder it starts from, the points it passes, what it leaves."""

    name: str
    folder: Path
    pristine: Path
    points: list[Point]
    before: scenes.Tree
    after: scenes.Tree


@pytest.fixture(scope="module", params=sorted(scenes.SCENES))
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    place = tmp_path_factory.mktemp(request.param)
    folder, pristine, log = place / "work", place / "pristine", place / "points"
    scenes.build(request.param, folder)
    scenes.restore(folder, pristine)
    before = scenes.read_tree(folder)
    command = scenes.SCENES[request.param].command
    outcome = scenes.run_scene(folder, *command, prepare=Injection(folder, log).install)
    assert outcome.exit_code == 0, outcome.stderr
    return Undisturbed(request.param, folder, pristine, faults.read_log(log), before, scenes.read_tree(folder))


def _assert_told(outcome: Outcome) -> None:
    """A documented end; one that failed says why in its last line, which begins as all such lines do."""
    assert outcome.exit_code in DOCUMENTED, f"{outcome.exit_code}: {outcome.stderr}"
    outcome.assert_clean()
    if outcome.exit_code:
        assert outcome.stderr.splitlines()[-1].startswith("dcae: "), outcome.stderr


def _try(way: Undisturbed, fault: str, number: int) -> str:
    """One fault and what comes after it: how the second call ended."""
    command = scenes.SCENES[way.name].command
    scenes.restore(way.pristine, way.folder)
    outcome = scenes.run_scene(way.folder, *command, prepare=Injection(way.folder, None, fault, number).install)
    if outcome.exit_code != KILLED or fault != "kill":
        _assert_told(outcome)
    # Damaged images are left out with a word, by default; what comes of it is another result, and says so.
    left_out = fault == "vanish" and _says_left_out(way, outcome)
    if not left_out:
        scenes.assert_whole(way.folder, way.before, way.after)
    if outcome.exit_code == 0 and not left_out:
        assert scenes.read_tree(way.folder) == way.after, "ended with 0, but not with the same bytes"
    again = scenes.run_scene(way.folder, *command)
    _assert_told(again)
    if again.exit_code:
        return f"says: {again.stderr.splitlines()[-1]}"
    now = scenes.read_tree(way.folder)
    if left_out and now != way.after and _says_left_out(way, again):
        return "says which image was left out"
    assert now == way.after, f"other bytes: {sorted(set(now.items()) ^ set(way.after.items()))}"
    assert not scenes.SCENES[way.name].owns_output or not scenes.leftovers(way.folder)
    return "same bytes"


def _says_left_out(way: Undisturbed, outcome: Outcome) -> bool:
    """Whether the command, or the list that a training keeps, names an image as unreadable.

    Any image: threads read several at once, so that the point which is theirs together may fall to another of them.
    """
    listed = way.folder / "run" / "damaged.txt"
    words = outcome.stderr + (listed.read_text() if listed.is_file() else "")
    images = {point.file.removeprefix("images/") for point in way.points if point.file.startswith("images/")}
    return any(f"{image} cannot be read: No such file" in words for image in images)


def _try_all(way: Undisturbed, fault: str, numbers: list[int]) -> None:
    """Try each, then report those that did not hold."""
    ends: Counter[str] = Counter()
    failures = []
    for number in numbers:
        try:
            ends[_try(way, fault, number)] += 1
        except AssertionError as failure:
            point = way.points[number]
            failures.append(f"point {number}, {point.kind} {point.file}: {failure}")
    possible = len(faults.points_of(fault, way.points))
    print(f"{way.name}, {fault}: {len(numbers)} of {possible} points tried; {dict(ends)}")
    assert not failures, f"{len(failures)} of {len(numbers)}\n" + "\n".join(failures)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_points(undisturbed: Undisturbed, fault: str) -> None:
    numbers = faults.points_of(fault, undisturbed.points)
    first = len(numbers) * (1 + FAULTS.index(fault)) // 4  # each fault at another part of the way
    _try_all(undisturbed, fault, numbers[first : first + _QUICK])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_point(undisturbed: Undisturbed, fault: str) -> None:
    _try_all(undisturbed, fault, faults.points_of(fault, undisturbed.points))
