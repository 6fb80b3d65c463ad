"""Names that terminals, JSON and UTF-8 cannot hold, through every command that takes a folder of images."""

import json
import os
from pathlib import Path

import pytest

from dcae_core.data.latents import LatentDataset
from dcae_core.errors import DataError, RecipeError, printable
from tests.hostile.child import run_dcae
from tests.hostile.material import image_bytes, write
from tests.training.small_runs import phase, recipe_for

NOT_UTF8 = os.fsdecode(b"caf\xe9")
CLASSES = (NOT_UTF8, "escape\x1b[2J", "two\nlines")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 漢 😀.png", "plain é 漢 😀.png"),
        ("a\x1b[31m", r"a\x1b[31m"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        (NOT_UTF8, r"caf\xe9"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u0085", r"a\u2028b\x85"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_may_be_printed_of_a_name(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert str(DataError(f"{text} is damaged")) == f"{expected} is damaged"


def test_a_recipes_faults_keep_their_lines() -> None:
    assert str(RecipeError("r has 2 faults:\n  a\x1b\n  b")) == "r has 2 faults:\n  a\\x1b\n  b"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of awkward names, an image and a damaged one in each."""
    for name in CLASSES:
        write(tmp_path / "images" / name / f"{name}.png", image_bytes())
        write(tmp_path / "images" / name / f"damaged {name}.png", b"no image")
    return tmp_path / "images"


def test_encode_dataset_takes_them_and_lists_them_escaped(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    run = run_dcae(
        *("encode-dataset", "--images", images, "--model", model, "--resolution", 16, "--out", out, "--device", "cpu")
    )
    assert run.exit_code == 0, run.stderr
    run.assert_clean()
    manifest = LatentDataset(out).manifest
    assert (manifest.count, len(manifest.damaged)) == (3, 3)
    assert sorted(manifest.classes) == sorted([r"caf\xe9", r"escape\x1b[2J", r"two\nlines"])


def test_eval_writes_a_report_of_them(model: Path, images: Path, tmp_path: Path) -> None:
    run = run_dcae(
        *("eval", "--images", images, "--model", model, "--resolution", 16, "--psnr", "--device", "cpu"),
        *("--work", tmp_path / "work", "--report", tmp_path / "report"),
    )
    assert run.exit_code == 0, run.stderr
    run.assert_clean()
    for page in (tmp_path / "report").rglob("*.*"):
        text = page.read_bytes()
        assert b"\x1b" not in text or page.suffix == ".png"


def test_train_ae_takes_them(images: Path, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, phase(steps=2)).model_dump(mode="json")
    recipe["data"]["sources"][0]["path"] = str(images)
    path = write(tmp_path / "recipe.yaml", json.dumps(recipe))
    run = run_dcae("train-ae", path, "--device", "cpu")
    assert run.exit_code == 0, run.stderr
    run.assert_clean()
