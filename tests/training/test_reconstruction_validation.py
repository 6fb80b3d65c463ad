"""Held-out images, measured by one process or shared by two, and a stop on the way."""

from pathlib import Path

import pytest
import torch

from dcae_core.data.sources import find_images
from dcae_core.recipes.train_ae import ValidationSettings
from dcae_core.training import validation as module
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.validation import ReconstructionValidation
from tests.metrics.cheap_inception import CheapExtractor
from tests.processes import one_thread, run_in_group
from tests.small import small_autoencoder
from tests.training.small_runs import write_images


@pytest.fixture
def open_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "load_inception", lambda *_, **__: CheapExtractor())
    monkeypatch.setattr(module, "frechet_distance", lambda a, b: float(((a.mean - b.mean) ** 2).sum()))
    images = find_images([str(write_images(tmp_path / "images", 5))])

    def look(num_images: int, fid: bool = True) -> ReconstructionValidation:
        settings = ValidationSettings(path="", resolution=16, num_images=num_images, batch_size=2, every=1, fid=fid)
        return ReconstructionValidation(images, settings, RunDirectory(tmp_path).grid, torch.device("cpu"))

    return look


@one_thread
@pytest.mark.parametrize(("num_images", "fid"), [(5, True), (1, False)])  # the second process has no image of one
def test_two_processes_measure_what_one_does(open_validation, num_images: int, fid: bool) -> None:
    network = small_autoencoder()
    alone = open_validation(num_images, fid).measure(network, 1, lambda: False)
    assert alone is not None
    assert list(alone) == ["psnr", "ssim", "rfid"][: 2 + fid]

    def share() -> None:
        assert open_validation(num_images, fid).measure(network, 1, lambda: False) == pytest.approx(alone, rel=1e-6)

    run_in_group(2, share)


def test_a_stop_before_the_first_image_is_heard(open_validation) -> None:
    assert open_validation(3).measure(small_autoencoder(), 1, lambda: True) is None
