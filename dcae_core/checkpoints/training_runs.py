"""What lies in the run directory of a training, as far as those who use the trained network have to know."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.configs import AutoencoderConfig
from dcae_core.weights import read_json, require_scaling_factor

RECIPE_NAME, RESULT_NAME = "recipe.yaml", "autoencoder"
_CHECKPOINTS, _PHASES, _STATE_NAME = "checkpoints", "phases", "state.json"
_KEY = "training"


@dataclass(frozen=True)
class TrainedAutoencoder:
    """What a checkpoint holds.

    Attributes:
        config: the network.
        scaling_factor: of its latents, where the training does not change them.
        weights: the files; averages take the place of tensors of the same names.
    """

    config: AutoencoderConfig
    scaling_factor: float | None
    weights: list[Path]


def is_training_run(directory: Path) -> bool:
    """Whether a training of an autoencoder or of a diffusion model has its run directory here."""
    return (directory / RECIPE_NAME).is_file() and (directory / _CHECKPOINTS).is_dir()


def is_checkpoint(directory: Path) -> bool:
    """Whether a training run could go on from here."""
    return (directory / _STATE_NAME).is_file()


def model_name(directory: Path) -> str:
    """What people call what lies in a directory: its own name, that of the run for a run's result, or both."""
    directory = directory.resolve()
    if is_training_run(directory.parent) and directory.name == RESULT_NAME:
        return directory.parent.name
    if is_training_run(directory.parent.parent):
        return f"{directory.parent.parent.name}-{directory.name}"
    return directory.name


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run; one that is there is complete.

    Raises:
        CheckpointError: there is none yet.
    """
    steps = {
        int(match[1]): child
        for child in (run / _CHECKPOINTS).iterdir()
        if (match := re.fullmatch(r"step_(\d+)", child.name))
    }
    if not steps:
        raise CheckpointError(f"{run / _CHECKPOINTS} holds no checkpoint yet")
    return steps[max(steps)]


def trained_in(run: Path) -> Path:
    """Where the autoencoder of a run lies: its result, or while there is none its newest checkpoint.

    Raises:
        CheckpointError: there is neither yet.
    """
    result = run / RESULT_NAME
    return result if (result / OWN_CONFIG_NAME).is_file() else last_checkpoint(run)


def describe_training(config: AutoencoderConfig, scaling_factor: float | None) -> dict[str, Any]:
    """What `dcae.json` of a run holds, so that its checkpoints can be read back.

    Args:
        config: of the network.
        scaling_factor: of its latents, where the training does not change them.
    """
    return {_KEY: {"config": config.to_dict(), "scaling_factor": scaling_factor}}


def read_trained(checkpoint: Path) -> TrainedAutoencoder:
    """What a checkpoint of `dcae train-ae` holds.

    A run of an earlier version says which network it trains once a phase of it is finished.

    Raises:
        CheckpointError: it is of another training, or nothing says what network it is.
    """
    weights, average = checkpoint / f"{RESULT_NAME}.safetensors", checkpoint / "ema.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{checkpoint} holds no autoencoder; for a diffusion model's there is dcae sample")
    run = checkpoint.resolve().parent.parent
    finished = [run / RESULT_NAME / OWN_CONFIG_NAME, *sorted((run / _PHASES).glob(f"*/{OWN_CONFIG_NAME}"))]
    file = next((file for file in [run / OWN_CONFIG_NAME, *finished] if file.is_file()), None)
    if file is None:
        raise CheckpointError(f"{checkpoint}: nothing in {run} says what network this is; continue its training once")
    values = read_json(file)
    try:
        described = values.get(_KEY, values)
        config = AutoencoderConfig.from_dict(described["config"])
        factor = require_scaling_factor(described["scaling_factor"], file) if _KEY in values else None
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{file} describes no autoencoder: {error}") from error
    return TrainedAutoencoder(config, factor, [weights, average] if average.is_file() else [weights])
