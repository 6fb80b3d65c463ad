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
    """The file of a recipe: a path, or the name of a shipped one, with or without its directory.

    Args:
        name_or_path: "my/recipe.yaml", "tiny" or "train_ae/tiny".
        command: whose recipes a bare name is looked up among, such as "train-ae".

    Raises:
        RecipeError: there is no such file and no such name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = path.as_posix().removesuffix(".yaml")
    shipped = shipped_recipes()
    folder = command.replace("-", "_")
    for candidate in (f"{folder}/{name}", name):
        if candidate in shipped:
            return shipped[candidate]
    if path.suffix in (".yaml", ".yml") and "/" in str(name_or_path):
        raise RecipeError(f"no recipe file {name_or_path}")
    known = [entry.split("/")[1] for entry in shipped if entry.startswith(f"{folder}/")]
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `dcae recipes list`"
    raise RecipeError(f"no recipe file or shipped {command} recipe is called {name_or_path}; {hint}")


def describe_recipe(path: Path) -> str:
    """What a recipe says about itself: its first block of comment lines, without the marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
