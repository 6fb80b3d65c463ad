"""A network with its optimiser and learning rate, as a recipe describes them."""

from torch import nn

from dcae_core.recipes.training import OptimiserSettings
from dcae_core.training.optimisers import build_adamw
from dcae_core.training.schedules import learning_rate_at
from dcae_core.training.task import Player


def build_player(network: nn.Module, settings: OptimiserSettings, steps: int) -> Player:
    """An optimiser for what takes gradients in `network` now, over a phase of `steps` steps."""

    def rate(step: int) -> float:
        return learning_rate_at(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            total_steps=steps,
            final_fraction=settings.final_fraction,
        )

    optimiser = build_adamw(
        network,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.betas[0], settings.betas[1]),
        epsilon=settings.epsilon,
    )
    return Player(network, optimiser, rate, settings.clip_gradient_norm)
