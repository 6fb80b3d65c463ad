"""The tour's script goes the whole way: images, reconstructions, latents, a diffusion model, new images."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dcae_core.pipelines.encode import ENOUGH_LATENTS

SCRIPT = Path(__file__).parents[1] / "examples" / "tour.sh"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")
def test_the_tour_in_short(tmp_path):
    for number in range(16):
        folder = tmp_path / "images" / "abcd"[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 20 + number).convert("RGB").save(folder / f"{number}.png")
    environment = os.environ | {
        "DCAE": str(Path(sys.executable).with_name("dcae")),
        "STEPS": "1",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [SCRIPT, tmp_path / "images", tmp_path / "out"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "16 latents in 2 shards, every checksum is right" in run.stdout
    with Image.open(tmp_path / "out" / "samples" / "grid.png") as grid:
        assert grid.size == (512, 4 * (128 + 14))  # each row with a line of class names
    assert (tmp_path / "out" / "reconstructed" / "astronaut.compare.png").exists()
    assert (tmp_path / "out" / "run" / "samples" / "step_1.png").exists()


def test_the_tour_has_nothing_to_warn_of_about_its_own_images():
    images = list((SCRIPT.parent / "photographs").rglob("*.jpg"))
    assert 0 < len(images) < ENOUGH_LATENTS, "too few to judge a scaling factor by"
    for path in images:
        with Image.open(path) as image:
            assert min(image.size) >= 256, f"{path.name} would be enlarged"
