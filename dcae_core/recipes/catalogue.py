"""The recipes that come with the package: where they lie and what each says about itself."""

import difflib
from importlib.resources import files
from pathlib import Path

from dcae_core.errors import RecipeError


def recipes_directory() -> Path:
    """The shipped YAML: inside the installed package, or at the top of a source checkout."""
    installed = Path(str(files("dcae_core"))) / "shipped_recipes"
    return installed if installed.is_dir() else installed.parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe's file, by name ("train_ae/tiny"), in alphabetical order."""
    directory = recipes_directory()
    return {path.relative_to(directory).with_suffix("").as_posix(): path for path in sorted(directory.glob("*/*.yaml"))}


def find_recipe(name_or_path: str | Path, command: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one, with or without its folder.

    Args:
        name_or_path: "my/recipe.yaml", "tiny" or "train_ae/tiny".
        command: whose recipes a name without a folder is looked up among, such as "train-ae".

    Raises:
        RecipeError: there is no such file and no such name.
    """
    return _find(str(name_or_path), command.replace("-", "_"))


def find_any_recipe(name_or_path: str | Path) -> Path:
    """As `find_recipe`, among the recipes of every command.

    Raises:
        RecipeError: there is no such file and no such name, or several commands have a recipe of that name.
    """
    folders = sorted({name.split("/")[0] for name in shipped_recipes()})
    having = [folder for folder in folders if f"{folder}/{name_or_path}" in shipped_recipes()]
    if len(having) > 1:
        raise RecipeError(f"{name_or_path}: which one? {', '.join(f'{folder}/{name_or_path}' for folder in having)}")
    return _find(str(name_or_path), having[0] if having else "")


def _find(given: str, folder: str) -> Path:
    path = Path(given)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{given} is a directory, not a recipe")
    name = given.removesuffix(".yaml")
    shipped = shipped_recipes()
    for candidate in (f"{folder}/{name}", name):
        if candidate in shipped:
            return shipped[candidate]
    known = {entry: entry for entry in shipped} | {entry.split("/")[1]: entry for entry in shipped}
    near = list(dict.fromkeys(known[match] for match in difflib.get_close_matches(name, known, n=3)))
    hint = f"did you mean {' or '.join(near)}?" if near else "`dcae recipes list` names the shipped ones"
    raise RecipeError(f"{given}: no such recipe file or shipped recipe; {hint}")


def describe_recipe(path: Path) -> str:
    """What a recipe says about itself: its first block of comment lines, without the marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
