"""`scripts/judge_emoji.py`: every figure and picture of the model card, of a small model on a few drawn images."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from ..drawn_emoji import draw
from ..embedded_stand_in import CLASSES, put_in_place, write_stand_in

SCRIPT = Path(__file__).parents[2] / "scripts" / "judge_emoji.py"


@pytest.fixture
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("judge_emoji", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_figures_and_nearest_training_images(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(tmp_path / "embedded", monkeypatch, write_stand_in(tmp_path / "model"))
    monkeypatch.setattr(script, "SHOWN", 16)
    draw(tmp_path / "images" / "train", CLASSES, 20)
    draw(tmp_path / "images" / "held_out", CLASSES[:4], 8)
    script.judge(None, tmp_path / "images", tmp_path / "out", 16, guidance_scale=1.0)
    figures = (tmp_path / "out" / "figures.md").read_text()
    assert "| training images | 0 | " in figures
    assert "| held-out images | 8 | 0.00 / 0.00 / 0.00 | " not in figures
    rows = (tmp_path / "out" / "nearest.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == CLASSES[:16]
    for name in ("nearest.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) >= 256


def test_a_training_image_is_its_own_nearest(script: ModuleType, tmp_path: Path) -> None:
    pixels = script.torch.arange(5 * 12, dtype=script.torch.uint8).reshape(5, 3, 2, 2)
    images = script.Images(pixels, pixels.float(), ["a"] * 5, ["a"] * 5)
    moved = images._replace(pixels=pixels + 2)
    assert script.nearest_pixels(moved, images).indices.tolist() == [0, 1, 2, 3, 4]
    assert script.nearest_pixels(moved, images).distances.tolist() == pytest.approx([2.0] * 5)
    assert script.nearest_latents(images, images).distances.tolist() == [0.0] * 5


def test_the_curve_and_five_grids_of_a_run(script: ModuleType, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    (run / "samples").mkdir(parents=True)
    out.mkdir()
    for step in range(1, 10):
        Image.new("RGB", (64, 64), "red").save(run / "samples" / f"step_{100 * step}.png")
    lines = [json.dumps({"step": step, "loss": 2.0 / step}) for step in range(1, 50)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    script.show_run(run, out)
    with Image.open(out / "checkpoints.png") as image:
        assert image.size == (3 * 64, 2 * (64 + 14))
    assert (out / "curve.png").exists()
