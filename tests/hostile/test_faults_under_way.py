"""A kill, a full disk, a vanished or a cut file at every write, flush, rename, removal and read of what writes.

After each: a documented exit code and a line, nothing earlier lost, nothing half written under its own name; and the
same command run again ends with the bytes of an undisturbed run, or says what to do.
"""

import shutil
from collections.abc import Iterator

import pytest

import dcae_core.pipelines.evaluation.evaluate
import dcae_core.training.train_ae
import dcae_core.training.train_diffusion  # noqa: F401  here, lest every child imports them
from tests.hostile import faults, scenes
from tests.hostile.child import Outcome
from tests.hostile.faults import FAULTS, KILLED, Injection
from tests.hostile.ways import Undisturbed, try_all
from tests.metrics.cheap_inception import in_place_of_inception

DOCUMENTED = {0, 2, 3, 4, 5}
_QUICK = 1  # points of each command and fault in the normal run


@pytest.fixture(scope="module", autouse=True)
def cheap_inception() -> Iterator[None]:
    with in_place_of_inception():
        yield


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
    """One fault and what comes after it: how the last call ended."""
    command = scenes.SCENES[way.name].command
    log = way.folder.parent / "points-before-the-fault"
    scenes.restore(way.pristine, way.folder)
    outcome = scenes.run_scene(way.folder, *command, prepare=Injection(way.folder, log, fault, number).install)
    hit = faults.read_log(log)[number].file  # where threads read, not always the file of an undisturbed run
    if fault == "kill":
        assert outcome.exit_code == KILLED
        scenes.assert_whole(way.folder, way.before, way.after)
        return _go_on(way, None)
    spoilt = hit if fault == "cut" else ""
    left_out = _check(way, outcome, hit, spoilt)
    if fault == "cut":
        again = scenes.run_scene(way.folder, *command)
        _assert_told(again)
        left_out = left_out or _check(way, again, hit, spoilt)
        if (way.pristine / hit).exists():
            shutil.copy2(way.pristine / hit, way.folder / hit)
    return _go_on(way, hit if left_out else None)


def _check(way: Undisturbed, outcome: Outcome, hit: str, spoilt: str) -> bool:
    """Told, whole, and not wrong in silence; whether the file that was hit is an image which was left out.

    Damaged images are left out with a word, by default; what comes of it is another result, and says so.
    """
    _assert_told(outcome)
    listed = way.folder / "run" / "damaged.txt"
    words = outcome.stderr + (listed.read_text() if listed.is_file() else "")
    image = hit.removeprefix("images/")
    if image != hit and (f"{image} cannot be read" in words or f"{image} is damaged" in words):
        return True
    scenes.assert_whole(way.folder, way.before, way.after, spoilt)
    if outcome.exit_code == 0:
        now, wanted = scenes.read_tree(way.folder), dict(way.after)
        now.pop(spoilt, None), wanted.pop(spoilt, None)
        assert now == wanted, "ended with 0, but not with the same bytes"
    return False


def _go_on(way: Undisturbed, left_out: str | None) -> str:
    """The same command once more, undisturbed."""
    again = scenes.run_scene(way.folder, *scenes.SCENES[way.name].command)
    _assert_told(again)
    if again.exit_code:
        return f"says: {again.stderr.splitlines()[-1]}"
    now = scenes.read_tree(way.folder)
    if left_out is not None and now != way.after and _check(way, again, left_out, ""):
        return "says which image was left out"
    assert now == way.after, f"other bytes: {sorted(set(now.items()) ^ set(way.after.items()))}"
    assert not scenes.SCENES[way.name].owns_output or not scenes.leftovers(way.folder)
    return "same bytes"


def _try_all(way: Undisturbed, fault: str, tried: slice) -> None:
    numbers = faults.points_of(fault, way.points)
    try_all(way, fault, numbers[tried], len(numbers), lambda number: _try(way, fault, number))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_points(undisturbed: Undisturbed, fault: str) -> None:
    possible = len(faults.points_of(fault, undisturbed.points))
    first = possible * (1 + FAULTS.index(fault)) // (1 + len(FAULTS))  # each fault at another part of the way
    _try_all(undisturbed, fault, slice(first, first + _QUICK))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_point(undisturbed: Undisturbed, fault: str) -> None:
    _try_all(undisturbed, fault, slice(None))
