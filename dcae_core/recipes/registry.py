"""Which schema a recipe's `command` names."""

from importlib import import_module

from dcae_core.errors import RecipeError
from dcae_core.recipes.section import Recipe

SCHEMAS = {
    "encode-dataset": "dcae_core.recipes.encode_dataset:EncodeDatasetRecipe",
    "eval": "dcae_core.recipes.evaluate:EvaluateRecipe",
    "train-ae": "dcae_core.recipes.train_ae:TrainAutoencoderRecipe",
    "train-diffusion": "dcae_core.recipes.train_diffusion:TrainDiffusionRecipe",
}


def schema_of(command: str) -> type[Recipe]:
    """The schema of a command's recipes.

    Raises:
        RecipeError: no command of this name takes recipes.
    """
    if command not in SCHEMAS:
        raise RecipeError(f"no command {command!r} takes recipes; choose from {', '.join(SCHEMAS)}")
    module, name = SCHEMAS[command].split(":")
    schema: type[Recipe] = getattr(import_module(module), name)
    return schema
