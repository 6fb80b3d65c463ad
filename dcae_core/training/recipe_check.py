"""A recipe beside the network that it trains: what shows without data, weights, devices or downloads."""

from dcae_core.recipes.section import Recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.training.autoencoder_recipe import check_autoencoder_network
from dcae_core.training.diffusion_recipe import check_diffusion_network


def check_network(recipe: Recipe) -> list[str]:
    """Faults as "dotted.path: message"; none where a recipe describes no network."""
    if isinstance(recipe, TrainAutoencoderRecipe):
        return check_autoencoder_network(recipe)
    if isinstance(recipe, TrainDiffusionRecipe):
        return check_diffusion_network(recipe)
    return []
