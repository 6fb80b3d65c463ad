"""A training run: its lock, where it begins or continues, what it writes down; both trainings do their work in one."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from dcae_core.data.batches import BatchPlan
from dcae_core.devices import allow_tf32
from dcae_core.distributed import is_main, rank, world_size
from dcae_core.errors import CheckpointError, RecipeError, UsageError
from dcae_core.files import write_text
from dcae_core.recipes.loading import write_recipe
from dcae_core.recipes.settings import Recipe
from dcae_core.recipes.train_ae import TrainAutoencoderRecipe
from dcae_core.recipes.train_diffusion import TrainDiffusionRecipe
from dcae_core.recipes.yaml_reader import read_yaml
from dcae_core.training.checkpointing import DATA_KEY, read_checkpoint, read_progress
from dcae_core.training.loop import Loop, LoopSettings, StopSignals, loss_scaler
from dcae_core.training.run_directory import RunDirectory, read_state
from dcae_core.training.task import Progress, RunLogger, SilentLogger, Task
from dcae_core.training.trackers import RunLoggers, open_trackers, plot_metrics

TrainingRecipe = TrainAutoencoderRecipe | TrainDiffusionRecipe

_DECISIVE = (
    "network.",
    "seed",
    "data.sources.",
    "dataset.",
    "objective",
    "normalisation",
    "times.",
    "min_snr_gamma",
    "augmentation",
    "label_dropout",
    "batch_size",
)
_DECISIVE_IN_PHASE = ("name", "batch_size", "accumulation", "resolution", "train", "adjacent_stages")


@dataclass(frozen=True)
class RunOptions:
    """What is about this call rather than about the training; with `phase`, only that one is gone through.

    `resume`: "auto" continues what is in the run directory, "never" refuses to, a path continues that checkpoint.
    `allow_changed_data` continues also with other images than before.
    """

    device: torch.device
    resume: str = "auto"
    phase: str | None = None
    allow_changed_data: bool = False


class RunPhase(NamedTuple):
    """What a run has to know about one of its phases; `batch_size` is over all processes and parts of a step."""

    name: str
    steps: int
    batch_size: int
    accumulation: int


class Run:
    """One call of a training: what it continues, and where it writes.

    With `validate_first` a new run validates what it begins with, so that there is something to compare with.

    Attributes:
        checkpoint: to continue from, until the first phase has read it; None in a new run.
        progress: how far the run is; one object for each phase.

    Raises:
        UsageError: `options` ask for a phase or checkpoint that is not there, or the run was begun with other settings.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        phases: Sequence[RunPhase],
        options: RunOptions,
        directory: RunDirectory,
        logger: RunLogger,
        *,
        validate_first: bool,
    ) -> None:
        self.directory, self.device, self.logger = directory, options.device, logger
        self._recipe, self._phases = recipe, phases
        self._allow_changed_data = options.allow_changed_data
        self._data: dict[str, Any] | None = None
        self._changed_data: dict[str, Any] | None = None
        self.checkpoint = find_checkpoint(directory, options.resume)
        start = Progress(validation_due=validate_first)
        self.progress, self._last_phase = _where_to_begin(self.checkpoint, phases, options.phase, start)
        values = recipe.model_dump(mode="json")
        changed = _changes_since(directory, recipe, self.progress.phase) if self.checkpoint is not None else []
        if changed:
            self.logger.note(f"changed since this run was last started: {', '.join(changed)}")
        if is_main():
            trackers = open_trackers(recipe.logging, directory.path, self.progress.step, values)
            self.logger = RunLoggers([logger, *trackers])

    def begin(self) -> None:
        """Write `recipe.yaml`, and drop the records and checkpoints of steps that are to be done again."""
        if not is_main():
            return
        write_text(self.directory.path / "recipe.yaml", write_recipe(self._recipe))
        step = self.progress.step if self.checkpoint is not None else -1
        self.directory.forget_metrics_after(step, validation_due=self.progress.validation_due)
        self.directory.forget_checkpoints_after(step)
        if self.checkpoint is not None:  # a kill may have come between the checkpoint and its curves
            plot_metrics(self.directory.read_metrics(), self.directory.curves)
        if self._changed_data is not None:
            self.directory.append_metrics({"step": self.progress.step, "changed_data": self._changed_data})

    def check_data(self, identity: dict[str, Any]) -> None:
        """Compare the images with those that the run was trained on so far; checkpoints record these from now on.

        Raises:
            UsageError: they are others, and the call does not allow that.
        """
        self._data = identity
        before = read_state(self.checkpoint).get(DATA_KEY) if self.checkpoint is not None else None
        if before in (None, identity):
            return
        if not self._allow_changed_data:
            raise UsageError(
                f"{self.directory.path} was trained on {before['images']:,} images, and these {identity['images']:,} "
                "are not the same; put them back, or continue with --allow-changed-data"
            )
        self._changed_data = {"before": before, "now": identity}

    def note_start(self) -> None:
        """Say which checkpoint the run continues from, if it does."""
        if self.checkpoint is not None:
            self.logger.note(f"continuing after step {self.progress.step}, from {self.checkpoint}")

    @property
    def is_finished(self) -> bool:
        """Whether it would continue from the last step of this call, with nothing left but what follows training."""
        at_the_end = self.progress.phase == self._last_phase and not self.steps_left
        return self.checkpoint is not None and at_the_end and not self.progress.validation_due

    def phases_left(self) -> Iterator[int]:
        """The index of each phase that is to be trained; `progress` is where that phase begins."""
        for index in range(self.progress.phase, self._last_phase + 1):
            if index > self.progress.phase:
                self.progress = Progress(phase=index, step=self.progress.step, skipped=self.progress.skipped)
            yield index

    @property
    def batch_plan(self) -> BatchPlan:
        """How a batch of the present phase is divided."""
        phase = self._phases[self.progress.phase]
        return BatchPlan(phase.batch_size, phase.accumulation, world_size(), rank())

    @property
    def steps_left(self) -> range:
        """The steps of the present phase that are to be done."""
        return range(self.progress.phase_step, self._phases[self.progress.phase].steps)

    def open_loop(self, task: Task, signals: StopSignals, *, validate_every: int | None, num_workers: int) -> Loop:
        """The loop over the present phase; brings the task to the state that the checkpoint holds."""
        phase, recipe = self._phases[self.progress.phase], self._recipe
        scaler = loss_scaler(self.device, recipe.execution.precision)
        if self.checkpoint is not None:
            read_checkpoint(self.checkpoint, task, scaler)
            self.checkpoint = None
        settings = LoopSettings(
            phase=phase.name,
            steps=phase.steps,
            total_steps=sum(each.steps for each in self._phases),
            batch_size=phase.batch_size,
            accumulation=phase.accumulation,
            checkpoint_every=recipe.checkpoints.every,
            validate_every=validate_every,
            log_every=recipe.logging.every,
            data=self._data,
            on_nonfinite=recipe.on_nonfinite,
            max_skips=recipe.max_skips,
        )
        return Loop(task, settings, self.directory, self.progress, scaler, signals, self.logger, num_workers)


@contextmanager
def open_run(
    recipe: TrainingRecipe,
    phases: Sequence[RunPhase],
    options: RunOptions,
    logger: RunLogger | None,
    *,
    validate_first: bool = False,
) -> Iterator[Run]:
    """A run whose directory is held against a second one while the body runs. Errors as of `Run` and the lock."""
    directory = RunDirectory(Path(recipe.run_dir), recipe.checkpoints.keep, recipe.checkpoints.keep_every)
    told = logger if logger is not None and is_main() else SilentLogger()
    with directory.locked() if is_main() else nullcontext(), allow_tf32(recipe.execution.tf32):
        yield Run(recipe, phases, options, directory, told, validate_first=validate_first)


def find_checkpoint(run: RunDirectory, resume: str) -> Path | None:
    """The checkpoint to continue from, or None for a new run; `resume` as in `RunOptions`.

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


def _where_to_begin(
    checkpoint: Path | None, phases: Sequence[RunPhase], only: str | None, start: Progress
) -> tuple[Progress, int]:
    """The place to begin at, and the index of the last phase: `start` in a new run, all phases without `only`."""
    progress = read_progress(checkpoint) if checkpoint is not None else None
    if progress is not None and progress.phase >= len(phases):
        raise UsageError(
            f"{checkpoint} is in phase {progress.phase + 1}, and this recipe has {len(phases)}; choose another run_dir"
        )
    if only is None:
        return progress or start, len(phases) - 1
    names = [phase.name for phase in phases]
    if only not in names:
        raise UsageError(f"--phase {only}: this recipe has {', '.join(names)}")
    index = names.index(only)
    if progress is None:
        return replace(start, phase=index), index
    if progress.phase > index:
        raise UsageError(f"--phase {only}: this run is in phase {names[progress.phase]} already")
    left = phases[progress.phase].steps - progress.phase_step
    if progress.phase < index - 1 or (progress.phase == index - 1 and left > 0):
        raise UsageError(f"--phase {only}: phase {names[progress.phase]} is not finished; run it first")
    return progress, index


def _changes_since(run: RunDirectory, recipe: TrainingRecipe, phase: int) -> list[str]:
    """The settings, as dotted paths, that are not what they were when the run was last started.

    A setting that the run's version did not know yet was what its default is.
    Refused where what was trained so far, up to the phase of index `phase`, depends on them.
    """
    path = run.path / "recipe.yaml"
    if not path.is_file():
        return []
    try:
        before, now = _read_earlier(path, type(recipe)), recipe.model_dump(mode="json")
    except (OSError, ValueError, RecipeError) as error:
        raise CheckpointError(
            f"{path} is damaged, so that nobody can tell whether the settings are still the same; "
            "remove it to continue with those of this command"
        ) from error
    before, now = _flatten(before), _flatten(now)
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


def _read_earlier(path: Path, schema: type[Recipe]) -> Any:
    """The settings of an earlier start, with defaults for those that are newer."""
    # Settings were called num_pictures, pca_pictures, ... before they were num_images, pca_images.
    text = re.sub(r"^([\s-]*\w*)pictures(\w*:)", r"\1images\2", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    values = read_yaml(text, str(path))[0]
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no settings")
    try:
        return schema.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return values


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
