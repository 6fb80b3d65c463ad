"""From a recipe's name or file to checked settings: finding, reading, laying options over it, writing."""

import fnmatch
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dcae_core.errors import RecipeError, did_you_mean, near_names, printable, unknown_name
from dcae_core.recipes.faults import MAX_SHOWN, AnyRecipe, first_faults, shorten, validate
from dcae_core.recipes.settings import Recipe
from dcae_core.recipes.yaml_reader import Lines, read_yaml

SCHEMAS = {
    "encode-dataset": "dcae_core.recipes.encode_dataset:EncodeDatasetRecipe",
    "eval": "dcae_core.recipes.evaluate:EvaluateRecipe",
    "train-ae": "dcae_core.recipes.train_ae:TrainAutoencoderRecipe",
    "train-diffusion": "dcae_core.recipes.train_diffusion:TrainDiffusionRecipe",
}

_LONGEST_NAME = 40  # of an element of a list that faults are told by


def schema_of(command: str) -> type[Recipe]:
    """The schema of a command's recipes.

    Raises:
        UsageError: no command of this name takes recipes.
    """
    if command not in SCHEMAS:
        raise unknown_name("command with recipes", command, SCHEMAS)
    module, name = SCHEMAS[command].split(":")
    schema: type[Recipe] = getattr(import_module(module), name)
    return schema


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe's file, by name ("train_ae/tiny"), in alphabetical order.

    They are inside the installed package, or at the top of a source checkout.
    """
    installed = Path(str(files("dcae_core"))) / "shipped_recipes"
    directory = installed if installed.is_dir() else installed.parent.parent / "recipes"
    return {path.relative_to(directory).with_suffix("").as_posix(): path for path in sorted(directory.glob("*/*.yaml"))}


def find_recipe(name_or_path: str | Path, command: str | None = None) -> Path:
    """The file of a recipe: a path, or the name of a shipped one, with or without its folder.

    Args:
        name_or_path: "my/recipe.yaml", "tiny" or "train_ae/tiny".
        command: whose recipes a name without a folder is looked up among, such as "train-ae"; None: every command's.

    Raises:
        RecipeError: there is no such file and no such name, or several commands have a recipe of that name.
    """
    path, shipped = Path(name_or_path), shipped_recipes()
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path} is a directory, not a recipe")
    name = str(name_or_path).removesuffix(".yaml")
    folder = "*" if command is None else command.replace("-", "_")
    found = [entry for entry in shipped if entry == name or fnmatch.fnmatchcase(entry, f"{folder}/{glob.escape(name)}")]
    if len(found) > 1:
        raise RecipeError(f"{name_or_path}: which one? {', '.join(found)}")
    if found:
        return shipped[found[0]]
    fitting = [entry for entry in shipped if fnmatch.fnmatchcase(entry, f"{folder}/*")]
    known = {entry: entry for entry in fitting} | {entry.split("/")[1]: entry for entry in fitting}
    near = dict.fromkeys(known[match] for match in near_names(name, known))
    hint = did_you_mean(near, "`dcae recipes list` names the shipped ones")
    raise RecipeError(f"{name_or_path}: no such recipe file or shipped recipe; {hint}")


def describe_recipe(path: Path) -> str:
    """What a recipe says about itself: its first block of comment lines, without the marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def load_recipe(
    name_or_path: str | Path | None,
    schema: type[AnyRecipe],
    overrides: Sequence[str] | None = None,
    further_checks: Callable[[AnyRecipe], list[str]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyRecipe:
    """Read a recipe.

    Args:
        name_or_path: a file, or the name of a shipped recipe; None is one that says nothing but its command.
        schema: what it must fit; its `command` field has the command's name as default.
        overrides: "dotted.path=value", the value as YAML, laid over the recipe and the options.
        further_checks: faults that only a caller who knows networks or files can see, as "dotted.path: message".
        options: dotted path -> plain value, laid over the recipe.

    Raises:
        RecipeError: it cannot be read, or has faults; all of them are listed.
    """
    command = schema.model_fields["command"].default
    if name_or_path is None:
        return read_recipe(f"command: {command}", "the options", schema, overrides, further_checks, options)
    path = find_recipe(name_or_path, command)
    return read_recipe(_read_text(path), str(path), schema, overrides, further_checks, options)


def load_any_recipe(path: Path, further_checks: Callable[[Recipe], list[str]] | None = None) -> Recipe:
    """As `load_recipe`, by the schema that the recipe's own `command` line names."""
    text = _read_text(path)
    document, _ = read_yaml(text, str(path))
    command = document.get("command") if isinstance(document, dict) else None
    if not isinstance(command, str) or command not in SCHEMAS:
        hint = _mistyped_command(document) if isinstance(document, dict) and command is None else f", not {command!r}"
        line = Lines(text).of("command")
        place = f"{path}, line {line}" if line is not None else str(path)
        raise RecipeError(f"{place}: needs a line 'command: ...' with one of {', '.join(SCHEMAS)}{hint}")
    return load_recipe(path, schema_of(command), further_checks=further_checks)


def read_recipe(
    text: str,
    source: str,
    schema: type[AnyRecipe],
    overrides: Sequence[str] | None = None,
    further_checks: Callable[[AnyRecipe], list[str]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyRecipe:
    """As `load_recipe`, from the text itself; `source` names it in messages."""
    document, faults = read_yaml(text, source)
    if not isinstance(document, dict):
        raise RecipeError(f"{source}: a recipe is made of keys and values; see `dcae recipes list` for examples")
    _check_command(text, document, schema, source)
    for key, value in (options or {}).items():
        _assign(document, key.split("."), value)
    faults += _apply_overrides(document, overrides or ())
    recipe, found = validate(schema, _expand_home(document), further_checks)
    if found:
        laid_over = {*(options or ()), *(override.partition("=")[0] for override in overrides or ())}
        faults += _say_where(text, document, found, laid_over)
    if faults or recipe is None:
        raise RecipeError(_report(source, faults))
    return recipe


def _expand_home(value: Any) -> Any:
    """Texts that begin with `~/`, anywhere in a document, as the paths below the user's home that they mean."""
    if isinstance(value, dict):
        return {key: _expand_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def write_recipe(recipe: Recipe) -> str:
    """The settings as YAML, defaults filled in; `read_recipe` gives the same recipe back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}") from error


def _mistyped_command(document: dict[str, Any]) -> str:
    near = near_names("command", (str(key) for key in document if key != "command"))
    return f" (it has '{near[0]}'); did you mean 'command'?" if near else ""


def _check_command(text: str, document: dict[str, Any], schema: type[Recipe], source: str) -> None:
    expected = schema.model_fields["command"].default
    command = document.get("command")
    if command == expected:
        return
    if command is None:
        raise RecipeError(f"{source}: the line 'command: {expected}' is missing{_mistyped_command(document)}")
    line = Lines(text).of("command")
    raise RecipeError(f"{source}, line {line}: this is a recipe for `dcae {command}`, not for `dcae {expected}`")


def _apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Assign "dotted.path=value", the value as YAML; returns what is no assignment or leads through no keys."""
    faults = []
    for override in overrides:
        path, equals, text = override.partition("=")
        shown = f"--set {shorten(override)}"
        if not equals or not all(path.split(".")):
            faults.append(f"{shown}: expected key=value, such as seed=1")
            continue
        try:
            value, doubled = read_yaml(text, shown)
        except RecipeError as error:
            faults.append(str(error))
            continue
        faults += doubled
        if not _assign(document, path.split("."), value):
            faults.append(f"{shown}: '{shorten(path)}' leads to nothing that could be set")
    return faults


def _assign(place: Any, path: list[str], value: Any) -> bool:
    """Set one value, in place; False where the path leads through something that has no keys.

    A list is entered by position or, where its elements have a `name`, by that: `phases.full.steps`. A path that does
    not exist is made, and then refused as unknown with the rest of the recipe's faults; no value is made a section.
    """
    for name in path[:-1]:
        if isinstance(place, dict):
            if place.get(name) is None:
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
    if name in map(str, range(len(place))):
        return int(name)
    named = [index for index, item in enumerate(place) if isinstance(item, dict) and item.get("name") == name]
    return named[0] if len(named) == 1 else None


def _say_where(text: str, document: Any, faults: list[str], laid_over: set[str]) -> list[str]:
    """Faults with the lines that they stand on, where they stand in the text and not in what was laid over it."""
    lines, told = Lines(text), []
    given = [name.split(".") for name in laid_over]
    for fault in faults[:MAX_SHOWN]:
        named = _by_name(document, fault)
        places = [one.partition(":")[0].split(".") for one in (fault, named)]
        is_given = any(path[: len(place)] == place[: len(path)] for path in given for place in places)
        line = None if is_given else lines.of(fault.partition(":")[0])
        told.append(named if line is None else f"line {line}: {named}")
    return told + faults[MAX_SHOWN:]


def _by_name(document: Any, fault: str) -> str:
    """A fault with `phases.full` at its beginning instead of `phases.0`: how `--set` is given the same place."""
    path, colon, text = fault.partition(":")
    place, names = document, []
    for name in path.split("."):
        index = _index_in(place, name)
        place = place[index] if index is not None else place.get(name) if isinstance(place, dict) else None
        own = place.get("name") if index is not None and isinstance(place, dict) else None
        names.append(own if isinstance(own, str) and own.isidentifier() and len(own) < _LONGEST_NAME else name)
    return ".".join(names) + colon + text


def _report(source: str, faults: list[str]) -> str:
    unique = list(dict.fromkeys(printable(fault) for fault in faults))
    source = printable(source)
    if len(unique) == 1:
        return f"{source}: {unique[0]}"
    return f"{source} has {len(unique)} faults:\n" + "\n".join(f"  {fault}" for fault in first_faults(unique))
