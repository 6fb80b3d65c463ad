"""AdamW against its closed form, and what its weight decay acts on."""

import math

import pytest
import torch

from dcae_core.recipes.loading import load_any_recipe, shipped_recipes
from dcae_core.recipes.settings import OptimiserSettings
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.optimisers import build_trained_network

STEPS, RATE, DECAY, BETAS, EPSILON = 40, 2e-4, 0.03, (0.99, 0.98), 1e-8


def adamw(value: float, gradients: list[float], rates: list[float], decay: float) -> float:
    """Decoupled weight decay, then Adam with both averages corrected (arXiv 1711.05101, algorithm 2)."""
    mean = square = 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        value *= 1.0 - rate * decay
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        corrected = math.sqrt(square / (1 - BETAS[1] ** step))
        value -= rate * mean / (1 - BETAS[0] ** step) / (corrected + EPSILON)
    return value


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        ("matrices", {"0.weight"}),
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias"}),
    ],
)
def test_forty_steps_are_the_closed_form(decay: str, decayed: set[str]) -> None:
    """A matrix, its bias, and a norm; the norm's bias gets no gradient but what decay does to it."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).double()
    torch.nn.init.normal_(network[1].bias)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    settings = OptimiserSettings(
        learning_rate=RATE, weight_decay=DECAY, betas=list(BETAS), epsilon=EPSILON, warmup_steps=10, decay=decay
    )
    trained = build_trained_network(network, settings, STEPS)
    gradients = {name: torch.randn(STEPS, *value.shape, dtype=torch.float64) for name, value in before.items()}
    gradients["1.bias"].zero_()
    for step in range(STEPS):
        for group in trained.optimiser.param_groups:
            group["lr"] = trained.learning_rate(step)
        for name, value in network.named_parameters():
            value.grad = gradients[name][step]
        trained.optimiser.step()
    rates = [RATE * min(1.0, (step + 1) / 10) for step in range(STEPS)]
    for name, value in network.named_parameters():
        expected = [
            adamw(start, column.tolist(), rates, DECAY if name in decayed else 0.0)
            for start, column in zip(before[name].flatten().tolist(), gradients[name].flatten(1).T, strict=True)
        ]
        assert value.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15), name
    lost = (network[1].bias / before["1.bias"]).detach()
    kept = math.prod(1 - rate * DECAY for rate in rates) if decay == "all" else 1.0
    torch.testing.assert_close(lost, torch.full_like(lost, kept), rtol=1e-12, atol=0)


def test_published_diffusion_recipes_decay_everything_and_autoencoder_recipes_matrices() -> None:
    for name, path in shipped_recipes().items():
        recipe = load_any_recipe(path)
        if isinstance(recipe, TrainAutoencoderRecipe):
            assert {phase.optimiser.decay for phase in recipe.phases} == {"matrices"}, name
        elif name.startswith("train_diffusion/") and recipe.optimiser.weight_decay == 0.03:
            assert recipe.optimiser.decay == "all", name
