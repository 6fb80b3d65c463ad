"""What an installed copy holds: the wheel carries the program, the recipes and the embedded weights, and no more."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from dcae_core.zoo import EMBEDDED_AUTOENCODER, EMBEDDED_DENOISER

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
    embedded = ROOT / "dcae_core" / "embedded"
    weights = {str(path.relative_to(ROOT)) for path in embedded.glob("*/*")}
    assert f"dcae_core/embedded/{EMBEDDED_AUTOENCODER}/weights-1.safetensors" in weights
    assert weights <= files
    assert {f"dcae_core/embedded/{name}.md" for name in (EMBEDDED_AUTOENCODER, EMBEDDED_DENOISER)} <= files
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "dcae_core/pipelines/templates").iterdir()}
    assert {Path(template).suffix for template in templates} == {".css", ".html", ".js", ".md"}
    assert templates <= files
    assert {"dcae_core/py.typed", "dcae_cli/py.typed"} <= files


def test_the_package_says_who_made_it_where_it_runs_and_what_more_there_is(wheel) -> None:
    metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    for line in (
        "License-Expression: Apache-2.0",
        "Author: The dcae authors",
        "Classifier: Operating System :: Microsoft :: Windows",
        "Classifier: Programming Language :: Python :: 3.13",
    ):
        assert line in metadata
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    together = set(extras["all"][0].removeprefix("dcae[").removesuffix("]").split(","))
    assert together == extras.keys() - {"all", "dev", "docs"}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]


def test_the_wheel_holds_nothing_else(wheel) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dcae_core", "dcae_cli"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_embedded_weights_keep_within_their_limits(wheel) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist() if info.filename.endswith(".safetensors")}
    assert max(sizes.values()) <= 15e6
    for name, limit in ((EMBEDDED_AUTOENCODER, 24e6), (EMBEDDED_DENOISER, 16e6)):
        assert sum(size for file, size in sizes.items() if f"/{name}/" in file) <= limit


def test_the_card_of_an_embedded_model_is_filled_in(wheel) -> None:
    with_weights = {name.split("/")[-2] for name in wheel.namelist() if name.endswith("/weights-1.safetensors")}
    for name in with_weights:
        assert b"TO-FILL" not in wheel.read(f"dcae_core/embedded/{name}.md")


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
