"""Classes as people name them: by number, or by name with the nearest ones suggested."""

from collections.abc import Sequence
from functools import cache
from importlib import resources

from dcae_core.errors import UsageError, near_names

_SUGGESTIONS = 3
_MAX_DIGITS = 20


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ImageNet-1k in the usual order, one name each, all different.

    Source: `torchvision.models._meta` (the categories that every published ImageNet classifier carries).
    """
    return tuple((resources.files("dcae_core.data") / "imagenet_classes.txt").read_text("utf-8").splitlines())


def class_names_of(num_classes: int, names: Sequence[str] | None = None) -> Sequence[str] | None:
    """The names that a network's classes have: its own, ImageNet's where there are 1000, or none."""
    return imagenet_class_names() if names is None and num_classes == len(imagenet_class_names()) else names


def parse_classes(text: str, num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """Classes separated by commas, each a number or a name.

    Args:
        text: such as "207, golden retriever"; case, hyphens and underscores do not matter.
        num_classes: how many there are.
        names: one for each class; None where they have none. ImageNet's are used where there are 1000.

    Returns:
        Numbers in 0..num_classes-1, in the order given, repeats kept.

    Raises:
        UsageError: a number out of range, or an unknown name (the message has the nearest ones).
    """
    names = class_names_of(num_classes, names)
    numbers = {_plain(name): number for number, name in enumerate(names or ())}
    return [_parse_one(part.strip(), num_classes, numbers, names or ()) for part in text.split(",")]


def _parse_one(text: str, num_classes: int, numbers: dict[str, int], names: Sequence[str]) -> int:
    if text.removeprefix("-").isdecimal():
        if len(text) > _MAX_DIGITS or not 0 <= int(text) < num_classes:
            raise UsageError(f"class {text[:_MAX_DIGITS]} does not exist: this network knows 0 to {num_classes - 1}")
        return int(text)
    if not numbers:
        raise UsageError(f"class {text!r}: this network's classes have no names, give numbers 0 to {num_classes - 1}")
    if _plain(text) in numbers:
        return numbers[_plain(text)]
    near = [numbers[name] for name in _nearest(_plain(text), list(numbers))]
    some = near or sorted({0, num_classes // 2, num_classes - 1})
    hint = ", ".join(f"{names[number]} ({number})" for number in some)
    raise UsageError(f"no class is called {text!r}; {'nearest' if near else 'classes are, for example'}: {hint}")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def _nearest(text: str, known: list[str]) -> list[str]:
    """Names that contain the text as a word, then those spelled alike; failing both, those with a word that is."""
    near = [*(_containing(text, known) if text else []), *near_names(text, known)]
    if not near:
        words = near_names(text, dict.fromkeys(word for name in known for word in name.split()))
        near = [name for word in words for name in _containing(word, known)]
    return list(dict.fromkeys(near))[:_SUGGESTIONS]


def _containing(words: str, known: list[str]) -> list[str]:
    return [name for name in known if f" {words} " in f" {name} "]
