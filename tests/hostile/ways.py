"""A command's undisturbed way, and many tries of disturbing it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import scenes
from tests.hostile.faults import Point


@dataclass(frozen=True)
class Undisturbed:
    """A command's whole way: the folder it starts from, the points it passes, what it leaves."""

    name: str
    folder: Path
    pristine: Path
    points: list[Point]
    before: scenes.Tree
    after: scenes.Tree


def try_all(way: Undisturbed, fault: str, numbers: list[int], possible: int, try_one: Callable[[int], str]) -> None:
    """Try the fault at each of these points, count how that ended, then fail for those that did not hold."""
    ends: Counter[str] = Counter()
    failures = []
    for number in numbers:
        try:
            ends[try_one(number)] += 1
        except AssertionError as failure:
            point = way.points[number]
            failures.append(f"point {number}, {point.kind} {point.file}: {failure}")
    print(f"{way.name}, {fault}: {len(numbers)} of {possible} points tried; {dict(ends)}", flush=True)
    assert not failures, f"{len(failures)} of {len(numbers)}\n" + "\n".join(failures)
