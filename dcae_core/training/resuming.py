"""Where a run begins: at the start, at a checkpoint, in a phase; and whether that still fits the recipe."""

from pathlib import Path
from typing import Any

import yaml

from dcae_core.errors import UsageError
from dcae_core.training.checkpointing import read_progress
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import Progress

_DECISIVE = (
    "network.",
    "seed",
    "data.sources.",
    "dataset.",
    "objective",
    "augmentation",
    "label_dropout",
    "batch_size",
)
_DECISIVE_IN_PHASE = ("name", "batch_size", "accumulation", "resolution", "train", "adjacent_stages")


def find_checkpoint(run: RunDirectory, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to begin anew.

    Args:
        run: the run's directory.
        resume: "auto" takes its newest checkpoint if it has one, "never" begins anew, a path is a checkpoint.

    Raises:
        UsageError: "never", and there is a run; the path is no checkpoint, or another run's while there is one here.
    """
    latest = run.latest()
    if resume not in ("auto", "never"):
        if not (Path(resume) / "state.json").is_file():
            raise UsageError(f"--resume {resume}: not a checkpoint; take auto, never or a run's checkpoints/step_N")
        if latest is not None and Path(resume).resolve().parent != run.checkpoints.resolve():
            raise UsageError(f"--resume {resume}: {run.path} already holds another run; choose another run_dir")
        return Path(resume)
    if resume == "never" and latest is not None:
        raise UsageError(f"{run.path} already holds a run, which --resume never may not touch; choose another run_dir")
    return latest


def where_to_begin(
    checkpoint: Path | None, phase_names: list[str], phase_steps: list[int], only: str | None
) -> tuple[Progress, int]:
    """The place to begin at, and the index of the last phase to go through.

    A run that begins anew first validates what it begins with, so that there is something to compare with.

    Args:
        checkpoint: to go on from, if any.
        phase_names: of the recipe.
        phase_steps: of the recipe.
        only: one phase to go through alone, or None for all.

    Raises:
        UsageError: there is no such phase, the run is past it, or the phase before it is not finished.
    """
    progress = read_progress(checkpoint) if checkpoint is not None else None
    if only is None:
        return progress or Progress(validation_due=True), len(phase_names) - 1
    if only not in phase_names:
        raise UsageError(f"--phase {only}: this recipe has {', '.join(phase_names)}")
    index = phase_names.index(only)
    if progress is None:
        return Progress(phase=index, validation_due=True), index
    if progress.phase > index:
        raise UsageError(f"--phase {only}: this run is in phase {phase_names[progress.phase]} already")
    left = phase_steps[progress.phase] - progress.phase_step
    if progress.phase < index - 1 or (progress.phase == index - 1 and left > 0):
        raise UsageError(f"--phase {only}: phase {phase_names[progress.phase]} is not finished; run it first")
    return progress, index


def changes_since(run: RunDirectory, recipe: dict[str, Any], phase: int) -> list[str]:
    """The settings, as dotted paths, that are not what they were when the run was last started.

    Args:
        run: whose `recipe.yaml` is compared.
        recipe: the settings now, as plain values.
        phase: index of the phase to go on with.

    Raises:
        UsageError: among them are some that what was trained so far depends on.
    """
    path = run.path / "recipe.yaml"
    if not path.is_file():
        return []
    before, now = _flatten(yaml.safe_load(path.read_text(encoding="utf-8"))), _flatten(recipe)
    # Settings were called num_pictures, pca_pictures, ... before they were num_images, pca_images.
    before = {key.replace("pictures", "images"): value for key, value in before.items()}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    fixed = [f"phases.{phase}.{name}" for name in _DECISIVE_IN_PHASE]
    fixed += [f"phases.{index}.name" for index in range(phase)]
    decisive = [key for key in changed if key.startswith((*_DECISIVE, *fixed))]
    if decisive:
        raise UsageError(
            f"{run.path} holds a run with other settings ({', '.join(decisive[:4])}); "
            "put them back, or choose another run_dir"
        )
    return changed


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{path}.{key}" if path else str(key))
    return flat
