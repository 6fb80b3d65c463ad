"""Names that a shell completes: models, recipes and samplers. They are looked up when a shell asks, and only then."""

import typer


def complete_autoencoder(incomplete: str) -> list[str]:
    """Autoencoders of the zoo."""
    from dcae_core.zoo import AUTOENCODERS

    return [name for name in AUTOENCODERS if name.startswith(incomplete)]


def complete_diffusion_model(incomplete: str) -> list[str]:
    """Diffusion models of the zoo."""
    from dcae_core.zoo import DENOISERS

    return [name for name in DENOISERS if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """All models of the zoo."""
    return complete_autoencoder(incomplete) + complete_diffusion_model(incomplete)


def complete_sampler(incomplete: str) -> list[str]:
    """Samplers."""
    from dcae_core.diffusion.samplers import SAMPLERS

    return [name for name in SAMPLERS if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes of every command, with their folder."""
    from dcae_core.recipes.loading import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_own_recipe(context: typer.Context, incomplete: str) -> list[str]:
    """Shipped recipes of the command that is being written, without their folder."""
    folder = f"{(context.info_name or '').replace('-', '_')}/"
    return [name.removeprefix(folder) for name in complete_recipe(folder + incomplete)]
