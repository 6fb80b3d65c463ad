"""What an installed copy holds: the wheel carries the program, the recipes and the embedded weights, and no more."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(directory.glob("*.whl")))


def test_the_wheel_holds_every_module_recipe_and_weight(wheel) -> None:
    files = set(wheel.namelist())
    for package in ("dcae_core", "dcae_cli"):
        assert {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")} <= files
    recipes = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes
    assert {f"dcae_core/shipped_recipes/{recipe}" for recipe in recipes} <= files
    weights = {str(path.relative_to(ROOT)) for path in (ROOT / "dcae_core" / "embedded").rglob("*.safetensors")}
    assert weights
    assert weights <= files


def test_the_wheel_holds_nothing_else(wheel) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dcae_core", "dcae_cli"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_embedded_weights_keep_within_their_limits(wheel) -> None:
    sizes = [info.file_size for info in wheel.infolist() if info.filename.endswith(".safetensors")]
    assert max(sizes) <= 15e6
    assert sum(sizes) <= 24e6


def test_constraints_pin_every_dependency_without_any_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        requirement.partition(">=")[0].lower().replace("_", "-")
        for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {}
    for line in lines:
        name, separator, version = line.partition("==")
        assert separator
        assert version.replace(".", "").isalnum(), line
        pinned[name.lower().replace("_", "-")] = version
    assert wanted <= pinned.keys()
