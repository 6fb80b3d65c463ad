"""`--set key=value`: one setting of a recipe changed from the command line."""

from typing import Any

from dcae_core.errors import RecipeError
from dcae_core.recipes.yaml_reader import read_yaml


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> list[str]:
    """Set `dotted.path=value` in the document, in place; values are read as YAML.

    A list is entered by position or, where its elements have a `name`, by that: `phases.full.steps=100`.
    A path that does not exist is made, and then refused as unknown with the rest of the recipe's faults.

    Returns:
        Faults: overrides that are no assignment or lead through something that has no keys.
    """
    faults = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            faults.append(f"--set {override}: expected key=value, such as seed=1")
            continue
        try:
            value, doubled = read_yaml(text, f"--set {override}")
        except RecipeError as error:
            faults.append(str(error))
            continue
        faults += doubled
        if not _assign(document, path.split("."), value):
            faults.append(f"--set {override}: '{path}' leads to nothing that could be set")
    return faults


def _assign(place: Any, path: list[str], value: Any) -> bool:
    for name in path[:-1]:
        if isinstance(place, dict):
            if not isinstance(place.get(name), dict | list):
                place[name] = {}
            place = place[name]
        elif (index := _index_in(place, name)) is not None:
            place = place[index]
        else:
            return False
    if isinstance(place, dict):
        place[path[-1]] = value
        return True
    if (index := _index_in(place, path[-1])) is not None:
        place[index] = value
        return True
    return False


def _index_in(place: Any, name: str) -> int | None:
    if not isinstance(place, list):
        return None
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    named = [index for index, item in enumerate(place) if isinstance(item, dict) and item.get("name") == name]
    return named[0] if len(named) == 1 else None
