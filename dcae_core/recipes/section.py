"""What every part of every recipe has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversion between types, no change after reading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Recipe(Section):
    """The top of a recipe."""

    command: str
    """The command that this recipe is for."""

    def faults(self) -> list[str]:
        """What is wrong between settings that are each right by themselves, as "dotted.path: message"."""
        return []
