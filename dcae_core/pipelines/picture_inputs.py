"""Which pictures a run is about, and what the files that it writes for each are called."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from dcae_core.data.sources import PictureReference, find_pictures
from dcae_core.errors import DataError


def find_inputs(inputs: Iterable[str]) -> tuple[list[PictureReference], list[DataError]]:
    """The pictures that each input names, and what is wrong with the inputs that name none."""
    found: list[PictureReference] = []
    problems: list[DataError] = []
    for given in inputs:
        try:
            found += find_pictures([given])
        except DataError as error:
            problems.append(error)
    return found, problems


def name_outputs(references: Sequence[PictureReference]) -> list[str]:
    """What the outputs of each picture are called: its stem, with more of its path where several would be the same."""
    stems = [PurePath(reference.key).stem for reference in references]
    longer = [reference.key.replace("/", "_").replace("\\", "_") for reference in references]
    shared = Counter(stems)
    names = [whole if shared[stem] > 1 else stem for stem, whole in zip(stems, longer, strict=True)]
    used: Counter[str] = Counter()
    for index, name in enumerate(names):
        used[name] += 1
        if used[name] > 1:
            names[index] = f"{name}-{used[name]}"
    return names
