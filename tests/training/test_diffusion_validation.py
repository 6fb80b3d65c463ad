"""Looking at a diffusion model on the way: the same noise each time, FID shared by processes, a stop that is heard."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.checkpoints.denoisers import DiffusionParts
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics
from dcae_core.metrics.reference import write_reference
from dcae_core.models.configs import UViTConfig
from dcae_core.models.uvit import UViT
from dcae_core.pipelines.generate import DiffusionPipeline, draw_classes
from dcae_core.recipes.train_diffusion import SamplingSettings
from dcae_core.training import validation as diffusion_validation
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.validation import SamplingValidation

from ..processes import one_thread, run_in_group
from ..small import small_autoencoder

CONFIG = UViTConfig(input_size=4, in_channels=8, hidden_size=16, depth=2, num_heads=2, num_classes=3)
NUM_IMAGES = 5


def features_of(images: torch.Tensor, *, with_logits: bool = False, resize: str = "half_pixel") -> SimpleNamespace:
    """Stands for Inception: the means of the colours, and nothing else."""
    features = torch.zeros(len(images), 2048)
    features[:, :3] = images.float().mean(dim=(2, 3))
    return SimpleNamespace(features=features, logits=None)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A network, a way to look at it, and the reference that its own samples make."""
    torch.manual_seed(0)
    network = UViT(CONFIG).eval()
    parts = DiffusionParts(network, small_autoencoder(), "velocity", 0.5, CONFIG)
    classes = draw_classes(NUM_IMAGES, 3, 0)
    settings = {"seed": 0, "num_steps": 2, "sampler": "euler", "batch_size": 2}
    images = DiffusionPipeline(parts).generate(classes, **settings).images
    statistics = GaussianStatistics(2048)
    statistics.update(
        features_of(torch.from_numpy(np.stack([np.asarray(p) for p in images])).permute(0, 3, 1, 2)).features
    )
    write_reference(tmp_path / "ref.npz", Gaussian(statistics.mean, statistics.covariance), {})
    monkeypatch.setattr(diffusion_validation, "load_inception", lambda *_, **__: features_of)
    fid = {"reference": str(tmp_path / "ref.npz"), "every": 4, "num_images": NUM_IMAGES}
    sampling = SamplingSettings(every=2, num_images=4, guidance_scale=1.0, fid=fid, **settings)
    return network, lambda: SamplingValidation(parts, sampling, 7, RunDirectory(tmp_path).grid)


def never() -> bool:
    return False


@one_thread
def test_grids_come_from_the_same_noise_and_fid_when_it_is_due(made, tmp_path):
    network, look = made
    validation = look()
    assert validation.measure(network, 2, never) == {}
    for step in (4, 7):
        assert validation.measure(network, step, never)["fid"] == pytest.approx(0, abs=1e-6)
    grids = [(tmp_path / "samples" / f"step_{step}.png").read_bytes() for step in (2, 4, 7)]
    assert grids[0] == grids[1] == grids[2]
    with Image.open(tmp_path / "samples" / "step_2.png") as grid:
        assert grid.size == (32, 32)

    with torch.no_grad():
        network.decoder_pred.bias.add_(1.0)
    assert validation.measure(network, 8, never)["fid"] > 0.1
    assert (tmp_path / "samples" / "step_8.png").read_bytes() != grids[0]


@one_thread
def test_processes_share_the_samples_of_fid(made):
    network, look = made

    def measure() -> None:
        assert look().measure(network, 4, never)["fid"] == pytest.approx(0, abs=1e-6)

    run_in_group(2, measure)


@one_thread
def test_a_stop_is_heard(made):
    network, look = made
    assert look().measure(network, 4, lambda: True) is None
