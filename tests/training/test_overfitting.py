"""A tiny model learns a handful of latents by heart: sampling returns them, with each objective.

Distances are root mean squares over the 16 values of a latent, whose own root mean square is 1; a random latent is
about 0.9 from the nearest of 64.
"""

import pytest
import torch

from dcae_core.checkpoints.denoisers import locate_diffusion
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.diffusion import run_sampler, sample_noise
from dcae_core.models import build_denoiser
from dcae_core.weights import load_strictly, read_weights

from ..processes import one_thread
from .small_diffusion import recipe_for, train, write_latents

SHAPE = (4, 2, 2)
BATCH = 64


def nearest(directory, count: int, objective: str, architecture: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Train on `count` latents, each a class of its own; sample each class: distance to the nearest, and which."""
    encoder = EncoderRecord(name="dc-ae-f32c32-tiny-1.0", scaling_factor=1.0)
    latents = write_latents(
        directory / "latents", BATCH, SHAPE, num_classes=count, num_distinct=count, encoder=encoder
    )[:count]
    recipe = recipe_for(
        directory,
        objective=objective,
        network={"architecture": architecture, "hidden_size": 64, "depth": 2, "num_heads": 4},
        steps=steps,
        batch_size=BATCH,
        label_dropout=0.0,
        optimiser={"learning_rate": 3e-3, "betas": [0.9, 0.95], "warmup_steps": 50, "schedule": "cosine"},
        ema={"decay": 0.99, "warmup_steps": 2},
        logging={"every": 100},
    )
    files = locate_diffusion(train(recipe))
    network = build_denoiser(files.config).eval()
    load_strictly(
        network, {key: value for file in files.weights for key, value in read_weights(file).items()}, directory
    )
    classes = torch.arange(count)
    with torch.inference_mode():
        samples = run_sampler(
            None,
            lambda x, t: network(x, t, classes),
            sample_noise(0, range(count), SHAPE),
            prediction=objective,
            step_noise=lambda step: sample_noise(0, range(count), SHAPE, step),
        )
    distances = torch.cdist(samples.flatten(1), latents.flatten(1)) / 4
    return distances.min(dim=1)


@one_thread
def test_eight_latents_come_back(tmp_path):
    distance, which = nearest(tmp_path, 8, "velocity", "uvit", steps=400)
    assert which.tolist() == list(range(8))
    assert distance.mean() < 0.25


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("objective", "architecture"), [("velocity", "uvit"), ("epsilon", "uvit"), ("epsilon_variance", "dit")]
)
@one_thread
def test_sixty_four_latents_come_back_with_each_objective(tmp_path, objective, architecture):
    distance, which = nearest(tmp_path, 64, objective, architecture, steps=3500)
    assert which.tolist() == list(range(64))
    assert distance.max() < 0.2
