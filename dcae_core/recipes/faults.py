"""Every fault of a recipe in one report, each with its place and, for a mistyped key, the nearest right one."""

import difflib
import types
import typing
from typing import Any, Union

from pydantic import BaseModel, ValidationError

from dcae_core.recipes.section import Recipe, Section

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


def validate(schema: type[Recipe], document: Any) -> tuple[Recipe | None, list[str]]:
    """Check a document against a schema.

    What does not fit is taken out and the rest checked again, so that a typo in one place does not hide what is
    wrong in another, or between settings.

    Returns:
        The recipe, or None where not even the rest makes one, and the faults.
    """
    faults: list[str] = []
    while True:
        try:
            recipe = schema.model_validate(document)
        except ValidationError as error:
            found = error.errors(include_url=False)
            faults += [_describe(schema, item) for item in found]
            if not all(_remove(document, item["loc"]) for item in found if item["type"] != "missing"):
                return None, faults
            if any(item["type"] == "missing" for item in found):
                return None, faults
            continue
        return recipe, faults + recipe.faults()


def _describe(schema: type[BaseModel], error: Any) -> str:
    location, kind = error["loc"], error["type"]
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_hint(schema, location)}"
    if kind == "missing":
        return f"{path}: {_WORDS[kind]}"
    words = _WORDS.get(kind) or error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{path}: {words}, not {_show(error['input'])}" if location else f"the recipe: {words}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(schema: type[BaseModel], location: tuple[Any, ...]) -> str:
    known = list(_fields_at(schema, location[:-1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known here: {', '.join(known)}" if known else ""


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


def _remove(document: Any, location: tuple[Any, ...]) -> bool:
    """Take the value at `location` out of the document; whether there was one."""
    if not location:
        return False
    for part in location[:-1]:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return False
    last = location[-1]
    if isinstance(document, dict) and last in document:
        del document[last]
        return True
    if isinstance(document, list) and isinstance(last, int) and last < len(document):
        # The places of its neighbours, which other faults name, must not move.
        document[last] = None if document[last] is not None else {}
        return False
    return False
