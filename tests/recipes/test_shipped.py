"""Every shipped recipe is right, opens with what it is for, and is found by name."""

import pytest

from dcae_core.errors import RecipeError
from dcae_core.recipes.loading import (
    SCHEMAS,
    describe_recipe,
    find_recipe,
    load_any_recipe,
    shipped_recipes,
)
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.training.checks import check_network


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_is_right(name: str) -> None:
    recipe = load_any_recipe(shipped_recipes()[name], check_network)
    assert recipe.command.replace("-", "_") == name.split("/")[0]
    assert recipe.command in SCHEMAS


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_says_what_it_is_for(name: str) -> None:
    description = describe_recipe(shipped_recipes()[name])
    command = name.split("/")[0].replace("_", "-")
    assert f"dcae {command} {name.split('/')[1]}" in description
    for heading in ("Command:", "Hardware:", "Expected:"):
        assert heading in description


def test_recipes_are_found_by_either_name() -> None:
    assert find_recipe("tiny", "train-ae") == find_recipe("train_ae/tiny", "train-ae") == find_recipe("train_ae/tiny")
    with pytest.raises(RecipeError, match=r"which one. train_ae/tiny, train_diffusion/tiny"):
        find_recipe("tiny")
    with pytest.raises(RecipeError, match="did you mean train_ae/finetune-decoder"):
        find_recipe("finetune-decodr", "train-ae")
    with pytest.raises(RecipeError, match="names the shipped ones"):  # not another command's
        find_recipe("tiny", "eval")
    with pytest.raises(RecipeError, match="no such recipe file"):
        find_recipe("missing.yaml")


def test_schemas_describe_every_setting() -> None:
    """What an editor shows beside a key; a list of sections inherits the description of the section."""
    schema = TrainAutoencoderRecipe.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section.get("properties", {}).items():
            assert field.get("description"), name
