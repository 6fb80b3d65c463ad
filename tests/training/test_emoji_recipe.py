"""`make emoji` on drawn images, with a smaller network: 50 steps learn, and the result can be embedded."""

from pathlib import Path

import pytest
import torch

from dcae_core import sample
from dcae_core.checkpoints.denoisers import locate_diffusion
from dcae_core.checkpoints.saving import save_diffusion
from dcae_core.checkpoints.training_runs import read_metrics

from ..drawn_emoji import SIDE, STEPS, train_shortly
from ..embedded_stand_in import SAMPLING, put_in_place


def test_fifty_steps_of_the_recipe_learn_and_are_drawn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SAMPLING.classes is not None
    run = train_shortly(tmp_path, SAMPLING.classes)
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert losses[-1] < 0.85 * losses[0], losses
    assert (run / "samples" / f"step_{STEPS}.png").exists()
    save_diffusion(locate_diffusion(run), tmp_path / "half", dtype=torch.float16, in_parts=True)
    put_in_place(tmp_path / "embedded", monkeypatch, tmp_path / "half")
    images = sample(num_steps=2)
    assert [image.size for image in images] == [(SIDE, SIDE)] * len(SAMPLING.classes)
