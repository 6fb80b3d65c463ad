"""Whole sampling runs and training losses against the published ones (golden values from efficientvit)."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from dcae_core.diffusion import guide, sample_ddpm, sample_dopri5, sample_dpm_solver, sample_heun
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.diffusion.schedules import scaled_linear_schedule
from tests.denoisers import CLASSES, NULL_CLASS, golden_denoiser
from tests.golden import golden_noise, golden_tensors, relative_error

GOLDEN = golden_tensors("diffusion")
SHAPE = (4, 32, 8, 8)
NAMES = [name for name in GOLDEN if ".cfg" in name]


@cache
def network(name: str) -> nn.Module:
    return golden_denoiser({"usit_tiny": "uvit_tiny"}.get(name, name))


def published_step_noise(guided: bool) -> list[Tensor]:
    """One draw per step for the whole model batch, of which the first half belongs to the samples."""
    generator = torch.Generator().manual_seed(0)
    rows = SHAPE[0] * (2 if guided else 1)
    return [torch.randn(rows, *SHAPE[1:], generator=generator)[: SHAPE[0]] for _ in range(250)]


@pytest.mark.parametrize("name", NAMES)
def test_a_sampling_run_equals_the_published_one(name) -> None:
    network_name, solver, *rest = name.split(".", 2)
    settings, _, scale = rest[0].rpartition("cfg")
    scale = float(scale)
    model = guide(network(network_name), CLASSES, NULL_CLASS, scale)
    noise = golden_noise("x", SHAPE)
    if solver == "dpm_solver":
        sample = sample_dpm_solver(model, noise, int(settings.removeprefix("steps").rstrip(".")))
    elif solver == "dopri5":
        sample = sample_dopri5(model, noise)
    elif solver == "heun2":
        sample = sample_heun(model, noise, int(settings.removeprefix("grid").rstrip(".")) - 1)
    else:
        sample = sample_ddpm(model, noise, 250, published_step_noise(scale != 1))
    assert relative_error(sample, GOLDEN[name]) < 1e-4


def test_every_golden_run_is_covered() -> None:
    assert len(NAMES) == 18


def test_ddpm_draws_its_own_noise_as_the_published_code_does() -> None:
    """Unguided, the published draws are plain randn_like calls after a seed; a few steps suffice to compare."""
    model = guide(network("dit_tiny"), CLASSES, NULL_CLASS)
    noise = golden_noise("x", SHAPE)
    torch.manual_seed(0)
    drawn = sample_ddpm(model, noise, 5)
    assert torch.equal(drawn, sample_ddpm(model, noise, 5, published_step_noise(False)))
    assert torch.equal(drawn, sample_ddpm(model, noise, 5, torch.stack(published_step_noise(False))))
    assert torch.equal(drawn, sample_ddpm(model, noise, 5, published_step_noise(False).__getitem__))


@pytest.mark.parametrize("steps", [10, 20, 30])
def test_dpm_solver_on_gaussian_data_equals_the_published_one(steps) -> None:
    import numpy as np

    schedule = scaled_linear_schedule()

    def epsilon(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(schedule.alpha(t / 1000)), float(schedule.sigma(t / 1000))
        return sigma * (x - alpha * 0.7) / (alpha**2 * 0.3**2 + sigma**2)

    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 4, 4, 4), dtype=np.float32))
    expected = golden_tensors("misc")[f"gaussian.dpm_fast.steps{steps}"]
    assert relative_error(sample_dpm_solver(epsilon, noise, steps), expected) < 1e-5


def test_the_training_losses_of_dit_equal_the_published_ones() -> None:
    dit = network("dit_tiny")
    times = torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        losses = OBJECTIVES["epsilon_variance"].losses(
            lambda x, t: dit(x, t, CLASSES), golden_noise("x", SHAPE), golden_noise("eps", SHAPE), times
        )
    for part in ("loss", "mse", "vb"):
        assert relative_error(losses[part], GOLDEN[f"dit_tiny.train.{part}"]) < 1e-5
