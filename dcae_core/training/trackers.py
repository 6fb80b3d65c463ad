"""A run's figures, where people look for them: a plot in its directory, TensorBoard, Weights & Biases."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcae_core.errors import UsageError
from dcae_core.recipes.training import LoggingSettings
from dcae_core.training.line_chart import Panel, draw_panels
from dcae_core.training.watching import Watcher

_NOT_FIGURES = ("step", "phase", "seconds_left")


class Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def note(self, text: str) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.note(text)

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Pass it on."""
        for watcher in self._watchers:
            watcher.record(record, total_steps)


class TensorBoardTracker:
    """Writes event files. A continued run goes on after the step it continued from.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("logging.tensorboard needs its package: pip install 'dcae[tensorboard]'") from error
        self._writer = SummaryWriter(str(directory), purge_step=first_step + 1)

    def note(self, text: str) -> None:
        """Nothing: notes are for the terminal."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """One scalar for each figure."""
        for name, value in _figures(record).items():
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()


class WandbTracker:
    """Logs to a project of Weights & Biases. A continued run goes on under the same id.

    Raises:
        UsageError: wandb is not installed.
    """

    def __init__(self, project: str, directory: Path, recipe: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError("logging.wandb_project needs its package: pip install 'dcae[wandb]'") from error
        name = "-".join(directory.resolve().parts[-2:])
        self._run = wandb.init(project=project, id=name, dir=str(directory), config=recipe, resume="allow")

    def note(self, text: str) -> None:
        """Nothing: notes are for the terminal."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """All figures of the step."""
        self._run.log(_figures(record), step=record["step"])


def open_trackers(settings: LoggingSettings, directory: Path, first_step: int, recipe: dict[str, Any]) -> list[Watcher]:
    """The trackers that a recipe asks for.

    Raises:
        UsageError: a package is not installed.
    """
    trackers: list[Watcher] = []
    if settings.tensorboard:
        trackers.append(TensorBoardTracker(directory / "tensorboard", first_step))
    if settings.wandb_project is not None:
        trackers.append(WandbTracker(settings.wandb_project, directory, recipe))
    return trackers


def plot_metrics(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a run's losses, its validation and its learning rates over the steps.

    Args:
        records: the lines of `metrics.jsonl`.
        path: the PNG to write.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in _figures(record).items():
            curves.setdefault(name, []).append((record["step"], value))
    rates = {name: curve for name, curve in curves.items() if name.endswith("learning_rate")}
    apart = ("gradient_norm", "images_per_second", "loader_wait", "learning_rate", "logit", "_weight")
    losses = {
        name: curve
        for name, curve in curves.items()
        if not name.endswith(apart) and not name.startswith("validation.") and min(y for _, y in curve) > 0
    }
    panels = [Panel("training losses (logarithmic)", losses, logarithmic=True)]
    panels += [Panel(name, {name: curve}) for name, curve in curves.items() if name.startswith("validation.")]
    draw_panels([*panels, Panel("learning rate", rates)], path)


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name not in _NOT_FIGURES and isinstance(value, int | float) and math.isfinite(value)
    }
