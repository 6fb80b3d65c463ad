"""What can go wrong through no fault of the code: the kinds, their exit codes, and the words that they share."""

import difflib
from collections.abc import Iterable


class DcaeError(Exception):
    """An expected failure. Its message is one line: what is wrong, where, and what to do about it."""

    exit_code = 1


class UsageError(DcaeError):
    """Something asked for does not exist or cannot be combined: an unknown model, a bad option value."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has faults. The message lists all of them, one per line."""


class DataError(DcaeError):
    """Input that is missing, unreadable, damaged, or holds no image."""

    exit_code = 3


class CheckpointError(DataError):
    """Weights that are damaged, incomplete, or belong to another network."""


class ResourceError(DcaeError):
    """The device, the memory or the disk cannot do what was asked."""

    exit_code = 4


class DownloadError(DcaeError):
    """A file is not in the cache and could not be downloaded."""

    exit_code = 5


def near_names(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Up to three names that one was likely meant to be, the nearest first; `cutoff`: how alike they must be, 0..1."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)


def did_you_mean(near: Iterable[str], otherwise: str) -> str:
    """The end of a message about a name that is not known: the near ones, or what to do where there are none."""
    near = list(near)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def unknown_name(what: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a name that is none of those `known`, with the nearest of them, or else all of them.

    Args:
        what: the kind of thing, such as "sampler".
        name: what was asked for; of any type, as it may come from a file.
        known: the names there are.
    """
    known = list(known)
    hint = did_you_mean(near_names(str(name), known), f"choose from {', '.join(known)}")
    return UsageError(f"unknown {what} {name!r}; {hint}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a device had no memory left; torch says so in several ways."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
