"""From a recipe's name to its checked settings, with everything that is wrong said at once."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dcae_core.errors import RecipeError
from dcae_core.recipes.catalogue import find_recipe
from dcae_core.recipes.faults import AnyRecipe, validate
from dcae_core.recipes.overrides import apply_overrides
from dcae_core.recipes.registry import SCHEMAS, schema_of
from dcae_core.recipes.section import Recipe
from dcae_core.recipes.yaml_reader import read_yaml


def load_recipe(
    name_or_path: str | Path,
    schema: type[AnyRecipe],
    overrides: list[str] | None = None,
    further_checks: Callable[[AnyRecipe], list[str]] | None = None,
) -> AnyRecipe:
    """Read a recipe.

    Args:
        name_or_path: a file, or the name of a shipped recipe.
        schema: what it must fit; its `command` field has the command's name as default.
        overrides: "dotted.path=value", applied before anything is checked.
        further_checks: faults that only a caller who knows networks or files can see, as "dotted.path: message".

    Raises:
        RecipeError: it cannot be read, or has faults; all of them are listed.
    """
    command = schema.model_fields["command"].default
    path = find_recipe(name_or_path, command)
    return read_recipe(_read_text(path), str(path), schema, overrides, further_checks)


def load_any_recipe(path: Path, further_checks: Callable[[Recipe], list[str]] | None = None) -> Recipe:
    """Read a recipe by the schema that its own `command` line names.

    Args:
        path: the file.
        further_checks: as for `load_recipe`.

    Raises:
        RecipeError: it cannot be read, names no command that takes recipes, or has faults.
    """
    document, _ = read_yaml(_read_text(path), str(path))
    command = document.get("command") if isinstance(document, dict) else None
    if command not in SCHEMAS:
        raise RecipeError(f"{path}: needs a line 'command: ...' with one of {', '.join(SCHEMAS)}, not {command!r}")
    return load_recipe(path, schema_of(command), further_checks=further_checks)


def read_recipe(
    text: str,
    source: str,
    schema: type[AnyRecipe],
    overrides: list[str] | None = None,
    further_checks: Callable[[AnyRecipe], list[str]] | None = None,
) -> AnyRecipe:
    """As `load_recipe`, from the text itself; `source` names it in messages."""
    document, faults = read_yaml(text, source)
    if not isinstance(document, dict):
        raise RecipeError(f"{source}: a recipe is made of keys and values; see `dcae recipes list` for examples")
    _check_command(document, schema, source)
    faults += apply_overrides(document, overrides or [])
    recipe, found = validate(schema, document, further_checks)
    faults += found
    if faults or recipe is None:
        raise RecipeError(_report(source, faults))
    return recipe


def write_recipe(recipe: Recipe) -> str:
    """The settings as YAML, defaults filled in; `read_recipe` gives the same recipe back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}") from error


def _check_command(document: dict[str, Any], schema: type[Recipe], source: str) -> None:
    expected = schema.model_fields["command"].default
    command = document.get("command")
    if command == expected:
        return
    if command is None:
        near = difflib.get_close_matches("command", [str(key) for key in document], n=1)
        hint = f" (it has '{near[0]}')" if near else ""
        raise RecipeError(f"{source}: the line 'command: {expected}' is missing{hint}")
    raise RecipeError(f"{source}: this is a recipe for `dcae {command}`, not for `dcae {expected}`")


def _report(source: str, faults: list[str]) -> str:
    unique = list(dict.fromkeys(faults))
    if len(unique) == 1:
        return f"{source}: {unique[0]}"
    return f"{source} has {len(unique)} faults:\n" + "\n".join(f"  {fault}" for fault in unique)
