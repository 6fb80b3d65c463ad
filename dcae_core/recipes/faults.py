"""Every fault of a recipe in one report, each with its place and, for a mistyped key, the nearest right one."""

import difflib
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar, Union

from pydantic import BaseModel, ValidationError

from dcae_core.recipes.settings import Recipe, Section

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

MAX_SHOWN = 50  # faults; whoever has more reads these first
_MAX_SHOWN_LETTERS = 60  # of a value or a key
_MAX_ROUNDS = 8  # each mends what the one before could not see
_HARMLESS: dict[str, Any] = {
    "int_type": 5040 << 10,  # divisible by whatever a batch or an image may be divided by
    "int_from_float": 5040 << 10,
    "float_type": 1.0,
    "finite_number": 1.0,
    "string_type": "?",
}
_WORDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "list_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "model_attributes_type": "expected keys and values",
    "finite_number": "expected a finite number",
    "missing": "is missing; it has no default",
}


def validate(
    schema: type[AnyRecipe], document: Any, further_checks: Callable[[AnyRecipe], list[str]] | None = None
) -> tuple[AnyRecipe | None, list[str]]:
    """Check a document against a schema; return the recipe, or None where it could not be mended, and the faults.

    What does not fit is mended for the time being, in place, and the rest checked again, so that a typo in one place
    does not hide what is wrong in another, or between settings. `further_checks` tell faults that only the caller can
    see, as "dotted.path: message".
    """
    faults: list[str] = []
    reported: set[str] = set()
    meant: set[str] = set()
    for _ in range(_MAX_ROUNDS):
        try:
            recipe = schema.model_validate(document)
        except ValidationError as error:
            # Mistyped keys first: what they were meant to be is then not missing.
            for item in sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing"):
                path = ".".join(str(part) for part in item["loc"])
                if item["type"] == "missing" and path in reported | meant:
                    continue
                if path not in reported:  # else it is the value put there that does not fit either
                    faults.append(_describe(schema, item))
                reported.add(path)
                if item["type"] == "extra_forbidden" and (near := _nearest(schema, item["loc"])) is not None:
                    meant.add(".".join([*map(str, item["loc"][:-1]), near]))
                _mend(schema, document, item)
            continue
        # A value that was mended, and the section it is in, cannot be blamed for what they say now.
        mended = reported | meant
        mended |= {path.rpartition(".")[0] for path in mended}
        between = recipe.faults() + (further_checks(recipe) if further_checks is not None else [])
        return recipe, faults + [fault for fault in between if fault.partition(":")[0] not in mended]
    return None, faults


def _mend(schema: type[BaseModel], document: Any, error: Any) -> None:
    """Put something harmless in the place of a fault: the key that was meant, the nearest name, a handy number."""
    *path, last = error["loc"] or ("",)
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return
    kind = error["type"]
    if kind == "extra_forbidden" and isinstance(document, dict):
        value = document.pop(last, None)
        near = _nearest(schema, error["loc"])
        if near is not None:
            document.setdefault(near, value)
    elif kind == "literal_error":
        names = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        document[last] = (difflib.get_close_matches(str(error["input"]), names, n=1, cutoff=0.0) or names)[0]
    elif kind in _HARMLESS:
        document[last] = _HARMLESS[kind]
    elif kind in ("greater_than", "greater_than_equal") and isinstance(error["input"], int):
        document[last] = _HARMLESS["int_type"]
    elif isinstance(document, dict):
        document.pop(last, None)


def _describe(schema: type[BaseModel], error: Any) -> str:
    location, kind = error["loc"], error["type"]
    path = ".".join(shorten(str(part)) for part in location)
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_hint(schema, location)}"
    if kind == "missing":
        return f"{path}: {_WORDS[kind]}"
    words = _WORDS.get(kind) or error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{path}: {words}, not {_show(error['input'])}" if location else f"the recipe: {words}"


def first_faults(faults: list[str]) -> list[str]:
    """The faults that are shown: the first 50, and how many more there are."""
    rest = len(faults) - MAX_SHOWN
    return faults if rest <= 0 else [*faults[:MAX_SHOWN], f"and {rest:,} more"]


def _show(value: Any) -> str:
    return shorten(repr(value))


def shorten(text: str) -> str:
    """A value, a key or an override as messages show it: its first 60 letters."""
    return text if len(text) <= _MAX_SHOWN_LETTERS else f"{text[: _MAX_SHOWN_LETTERS - 3]}..."


def _hint(schema: type[BaseModel], location: tuple[Any, ...]) -> str:
    near = _nearest(schema, location)
    if near is not None:
        return f"; did you mean '{near}'?"
    known = _fields_at(schema, location[:-1])
    return f"; known here: {', '.join(known)}" if known else ""


def _nearest(schema: type[BaseModel], location: tuple[Any, ...]) -> str | None:
    """The setting that a mistyped key was most likely meant to be."""
    near = difflib.get_close_matches(str(location[-1]), _fields_at(schema, location[:-1]), n=1)
    return near[0] if near else None


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of the section that a place in the recipe holds."""
    for part in location:
        if isinstance(part, str) and part in schema.model_fields:
            section = _section_in(schema.model_fields[part].annotation)
            if section is None:
                return {}
            schema = section
    return dict(schema.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:
    """The section inside `list[Section]`, `Section | None` and the like."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Section) else None
    if typing.get_origin(annotation) in (list, dict, Union, types.UnionType):
        for argument in typing.get_args(annotation):
            if (section := _section_in(argument)) is not None:
                return section
    return None
