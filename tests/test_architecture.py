"""The map of the house (docs/development.md), kept: which room may import which, and where heavy packages appear."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE_FILES = sorted((ROOT / "dcae_core").rglob("*.py"))
CLI_FILES = sorted((ROOT / "dcae_cli").rglob("*.py"))

COMMON = {"errors", "limits", "json_reader", "progress", "files", "devices", "distributed"}
GROUND_FLOOR = COMMON | {"weights", "diffusion", "metrics"}
MAY_IMPORT = {
    "errors": set(),
    "limits": {"errors"},
    "json_reader": {"errors"},
    "progress": set(),
    "files": {"errors"},
    "devices": {"errors", "limits"},
    "distributed": COMMON,
    "weights": COMMON,
    "diffusion": COMMON,
    "metrics": COMMON | {"weights"},
    "models": COMMON,
    "zoo": COMMON | {"models"},
    "checkpoints": COMMON | {"weights", "models", "zoo"},
    "data": GROUND_FLOOR,
    "recipes": {"errors"},
    "pipelines": GROUND_FLOOR | {"models", "zoo", "checkpoints", "data", "recipes"},
    "training": GROUND_FLOOR | {"models", "zoo", "checkpoints", "data", "recipes", "pipelines"},
    "benchmarking": GROUND_FLOOR | {"models", "zoo", "checkpoints", "data", "recipes", "pipelines", "training"},
}
OPTIONAL_PACKAGES = {
    "diffusers",
    "tensorboard",
    "wandb",
    "triton",
    "torchmetrics",
    "torchdiffeq",
    "torchvision",
    "pyarrow",
}
BUILT_ON_TORCHVISION = "dcae_core/metrics/inception_network.py"
SCREEN_PACKAGES = {"typer", "rich", "dcae_cli"}
LIGHT_PACKAGES = set(sys.stdlib_module_names) | {"typer", "dcae_cli", "dcae_core.errors", "dcae_core.files"}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that the imports anywhere in `tree` name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            assert node.module is not None
            # `from dcae_core import zoo` names a module as well.
            yield from (
                (f"dcae_core.{alias.name}" if node.module == "dcae_core" else node.module) for alias in node.names
            )


def modules_imported_on_import(tree: ast.Module) -> Iterator[str]:
    """As above, without what only a call or the type checker imports."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from imported_modules(node)


def package_of(module: str) -> str:
    return module.partition(".")[0]


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "dcae_core").parts[0].removesuffix(".py")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return  # the front door shows names of every room
    assert room in MAY_IMPORT, f"a new room, {room}: give it its place in this table and in the map"
    rooms = {module.split(".")[1] for module in imported_modules(parse(file)) if module.startswith("dcae_core.")}
    assert rooms <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_the_library_has_no_screen(file: Path) -> None:
    tree = parse(file)
    assert not {package_of(module) for module in imported_modules(tree)} & SCREEN_PACKAGES
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not [call.lineno for call in calls if call.func.id == "print"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    modules = set(modules_imported_on_import(parse(file)))
    allowed = {"torchvision"} if name_of(file) == BUILT_ON_TORCHVISION else set()
    assert {package_of(module) for module in modules} & OPTIONAL_PACKAGES == allowed
    assert "dcae_core.metrics.inception_network" not in modules


@pytest.mark.parametrize("file", CLI_FILES, ids=name_of)
def test_commands_import_heavy_packages_inside_functions(file: Path) -> None:
    for module in modules_imported_on_import(parse(file)):
        light = package_of(module) in LIGHT_PACKAGES or module in LIGHT_PACKAGES
        assert light or room_is_light(module), (
            f"{module} slows down --help; import it inside the function that needs it"
        )


def room_is_light(module: str) -> bool:
    """Modules below `dcae_core` that themselves import nothing but the standard library."""
    file = ROOT / Path(*module.split(".")).with_suffix(".py")
    return file.exists() and all(
        package_of(name) in sys.stdlib_module_names or name in LIGHT_PACKAGES
        for name in modules_imported_on_import(parse(file))
    )


PAIRS = {"train_ae.py", "train_diffusion.py", "evaluate.py"}  # a recipe's schema, and what is done with it
LONGEST_FILE = 450


def test_a_file_name_names_one_file() -> None:
    names = Counter(file.name for file in CORE_FILES if file.name != "__init__.py")
    assert {name for name, count in names.items() if count > 1} == PAIRS
    assert all(names[name] == 2 for name in PAIRS)


@pytest.mark.parametrize("file", CORE_FILES, ids=name_of)
def test_no_file_is_too_long_to_be_read_at_once(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST_FILE


def test_a_forbidden_import_is_seen() -> None:
    tree = ast.parse("def f():\n    from dcae_core.training import loop\n    import rich.table\n")
    assert list(imported_modules(tree)) == ["dcae_core.training", "rich.table"]
    assert list(modules_imported_on_import(tree)) == []
