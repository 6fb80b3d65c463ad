"""What a reconstruction takes as its inputs, and what it calls its outputs; outputs never become inputs."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

from dcae_core.data.remote import is_url
from dcae_core.data.sources import ImageReference, find_images
from dcae_core.errors import DataError, printable

RECONSTRUCTION_SUFFIX, COMPARISON_SUFFIX = ".recon.png", ".compare.png"
_MAX_STEM_BYTES = 160  # of the 255 that a file's name may have; models' labels and suffixes come on top


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a run name.

    Attributes:
        images: to reconstruct.
        problems: what is wrong with those inputs, and files in folders, that name none.
        own_results: how many files were left out because an earlier run wrote them.
        unread: suffix -> how many files are images of a kind that is not read.
    """

    images: list[ImageReference]
    problems: list[DataError]
    own_results: int
    unread: Counter[str]


def find_inputs(inputs: Iterable[str], output: Path) -> Inputs:
    """The images that each input names, without what runs into `output` have written.

    Left out are, wherever a folder or a glob is searched, files named as our own (`.recon.png`, `.compare.png`) and
    all that lies in `output` if that is below the searched folder. A file that is named by itself or in a list is left
    out only if it is named as our own and lies in `output`: a shell has put it in the place of a `*`.
    """
    found: list[ImageReference] = []
    problems: list[DataError] = []
    own_results = 0
    unread: Counter[str] = Counter()
    for given in inputs:
        try:
            images = find_images([given], skip_damaged=True)
        except DataError as error:
            problems.append(error)
            continue
        kept = [image for image in images if not _is_own_result(image, given, output)]
        own_results += len(images) - len(kept)
        unread += images.unread
        found += kept
        problems += [left_out.error for left_out in images.left_out]
    if own_results and not found and not problems:
        problems.append(
            DataError(
                f"{', '.join(inputs)}: nothing but results of `dcae reconstruct` ({RECONSTRUCTION_SUFFIX}, "
                f"{COMPARISON_SUFFIX}, or in {output}); to reconstruct them again, name the files and another -o"
            )
        )
    return Inputs(found, problems, own_results, unread)


def _is_own_result(image: ImageReference, given: str, output: Path) -> bool:
    if image.offset >= 0 or is_url(image.path):
        return False
    has_our_name = image.path.endswith((RECONSTRUCTION_SUFFIX, COMPARISON_SUFFIX))
    is_in_output = _is_below(Path(image.path), output)
    if os.path.isfile(given):  # itself, or a list of files
        return has_our_name and is_in_output
    return has_our_name or (is_in_output and not _is_below(Path(given), output))


def _is_below(path: Path, directory: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(directory))


def name_outputs(references: Sequence[ImageReference]) -> list[str]:
    """What the outputs of each image are called: its stem, with more of its path where several would be the same."""
    stems = [_as_name(PurePath(reference.key).stem) for reference in references]
    longer = [_as_name(reference.key.replace("/", "_").replace("\\", "_")) for reference in references]
    shared = Counter(stems)
    names = [whole if shared[stem] > 1 else stem for stem, whole in zip(stems, longer, strict=True)]
    known = set(names)
    result: dict[str, None] = {}
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        result[name if name not in result else next(new for new in numbered if new not in known | result.keys())] = None
    return list(result)


def _as_name(stem: str) -> str:
    """A stem as the name of a file with room for what is added to it: printable, shortened where it is too long."""
    stem = printable(stem)
    content = stem.encode()
    if len(content) <= _MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[: _MAX_STEM_BYTES - 9].decode(errors='ignore')}-{digest}"
