"""What lies in the run directory of a training, as far as those who use the trained network have to know."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dcae_core.checkpoints.layouts import OWN_CONFIG_NAME
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.configs import AutoencoderConfig
from dcae_core.weights import read_json, read_weights, require_scaling_factor

RECIPE_NAME, RESULT_NAME = "recipe.yaml", "autoencoder"
METRICS_NAME, GRIDS_NAME, VALIDATION_PREFIX = "metrics.jsonl", "samples", "validation."
STATE_NAME, CHECKSUMS_NAME = "state.json", "checksums.json"
_CHECKPOINTS, _PHASES = "checkpoints", "phases"
_KEY = "training"
_STEP = re.compile(r"step_(\d+)")


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
    return (directory / STATE_NAME).is_file()


def model_name(directory: Path) -> str:
    """What people call what lies in a directory: its own name, that of the run for a run's result, or both."""
    directory = directory.resolve()
    if is_training_run(directory.parent) and directory.name == RESULT_NAME:
        return directory.parent.name
    if is_training_run(directory.parent.parent):
        return f"{directory.parent.parent.name}-{directory.name}"
    return directory.name


def complete_checkpoints(directory: Path) -> list[Path]:
    """Every complete checkpoint in a run's directory of checkpoints, oldest first."""
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _STEP.fullmatch(path.name)) and is_checkpoint(path)
    ]
    return [path for _, path in sorted(found)]


def last_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        CheckpointError: there is none yet.
    """
    complete = complete_checkpoints(run / _CHECKPOINTS)
    if not complete:
        raise CheckpointError(f"{run / _CHECKPOINTS} holds no checkpoint yet")
    return complete[-1]


def checkpoint_before(checkpoint: Path) -> Path | None:
    """The complete checkpoint before this one in its run; None where it is the first, or no run's."""
    complete = complete_checkpoints(checkpoint.parent)
    return complete[complete.index(checkpoint) - 1] if checkpoint in complete[1:] else None


def recorded_checksums(checkpoint: Path) -> dict[Path, str]:
    """SHA-256 of each file of a checkpoint; none of one that was written before they were recorded.

    Raises:
        CheckpointError: the record is damaged.
    """
    record = checkpoint / CHECKSUMS_NAME
    if not record.exists():
        return {}
    return {checkpoint / Path(name).name: str(digest) for name, digest in read_json(record).items()}


def read_files(weights: Sequence[Path], sha256: Mapping[Path, str]) -> dict[str, Tensor]:
    """All tensors of a model's files; later ones take the place of those of the same names in earlier ones.

    Args:
        weights: the files.
        sha256: what a file's bytes must hash to, where that is known.

    Raises:
        CheckpointError: as `read_weights`; of a training's checkpoint with the one before it as a way out.
    """
    state: dict[str, Tensor] = {}
    for path in weights:
        try:
            state |= read_weights(path, sha256.get(path))
        except CheckpointError as error:
            before = checkpoint_before(path.parent) if is_checkpoint(path.parent) else None
            if before is None:
                raise
            raise CheckpointError(f"{error}, or take the checkpoint before it, {before}") from error
    return state


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


@dataclass(frozen=True)
class RunRecord:
    """What a training has written down about itself up to a step.

    Attributes:
        recipe: the file with its settings.
        step: how many it had done.
        num_images: that it was trained on, where it says so.
        figures: name -> value of the last validation.
        grid: the images of the last validation; None where there are none.
    """

    recipe: Path
    step: int
    num_images: int | None
    figures: dict[str, float]
    grid: Path | None


def record_of(directory: Path) -> RunRecord | None:
    """Of the training that made what lies here: its run, its result or one of its checkpoints; None for all else.

    Raises:
        CheckpointError: the checkpoint is damaged, or there is none yet.
    """
    directory = directory.resolve()
    if is_checkpoint(directory) and is_training_run(directory.parent.parent):
        run, checkpoint = directory.parent.parent, directory
    else:
        run = directory.parent if directory.name == RESULT_NAME else directory
        if not is_training_run(run):
            return None
        checkpoint = last_checkpoint(run)
    state = read_json(checkpoint / STATE_NAME)
    try:
        step, num_images = int(state["progress"]["step"]), state.get("data", {}).get("images")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint / STATE_NAME} does not say how far the training was") from error
    figures = {
        name.removeprefix(VALIDATION_PREFIX): value
        for record in read_metrics(run)
        for name, value in record.items()
        if record["step"] <= step and name.startswith(VALIDATION_PREFIX) and isinstance(value, int | float)
    }
    grids = {number: path for number, path in _by_step(run / GRIDS_NAME).items() if number <= step}
    grid = grids[max(grids)] if grids else None
    return RunRecord(run / RECIPE_NAME, step, num_images if isinstance(num_images, int) else None, figures, grid)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every line of `metrics.jsonl` that is a record; a last line that a kill cut short is none."""
    path = run / METRICS_NAME
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    records = [_read_record(line) for line in lines]
    return [record for record in records if record is not None]


def _read_record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _by_step(directory: Path) -> dict[int, Path]:
    """What is called `step_N` in a directory, whatever follows a dot."""
    children = directory.iterdir() if directory.is_dir() else ()
    return {int(match[1]): child for child in children if (match := _STEP.fullmatch(child.stem))}
