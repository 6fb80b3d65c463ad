"""Training on what has nothing in it."""

import json

import torch
from PIL import Image

from dcae_core.models.autoencoder import Autoencoder
from tests.training.small_runs import phase, recipe_for, train


def test_a_perfect_reconstruction_of_black_images_goes_on(tmp_path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / f"{number}.png")

    def nothing(self: Autoencoder, x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros(len(x), 4, x.shape[2] // 4, x.shape[3] // 4)

    def perfect(self: Autoencoder, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x + 0 * next(self.parameters()).sum()

    monkeypatch.setattr(Autoencoder, "encode", nothing)
    monkeypatch.setattr(Autoencoder, "forward", perfect)
    validation = {"path": str(tmp_path / "images"), "resolution": 16, "num_images": 4, "every": 1}
    autoencoder = train(recipe_for(tmp_path, phase(steps=2), validation=validation))
    assert json.loads((autoencoder / "dcae.json").read_text())["scaling_factor"] == 1.0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "validation.psnr" in json.loads(lines[-1])
