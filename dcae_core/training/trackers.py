"""Who is told how a run goes: a chart, TensorBoard, Weights & Biases."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dcae_core.errors import UsageError
from dcae_core.files import replace_file
from dcae_core.recipes.settings import LoggingSettings
from dcae_core.training.task import RunLogger

_WIDTH, _HEIGHT, _MARGIN = 900, 320, 64
_COLOURS = ("#1f6fb4", "#d95f0e", "#2a9d5c", "#8e44ad", "#7f7f7f", "#b8860b")
_INK, _GRID = "#333333", "#dddddd"
_MAX_POINTS = 1000

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One set of axes: curves by name, (x, y) points in the order of x; values that are not finite are left out."""

    title: str
    curves: Mapping[str, Curve]
    logarithmic: bool = False


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels one below the other into a PNG file; nothing where no panel has a point."""
    panels = [panel for panel in panels if any(_points(panel, name) for name in panel.curves)]
    if not panels:
        return
    image = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), "white")
    for index, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(image), panel, index * _HEIGHT)
    with replace_file(path) as file:
        image.save(file, "PNG")


def _points(panel: Panel, name: str) -> list[tuple[float, float]]:
    """Finite points, thinned out evenly where there are more than pixels; y as it is drawn."""
    points = [(x, y) for x, y in panel.curves[name] if math.isfinite(y) and (y > 0 or not panel.logarithmic)]
    stride = max(1, len(points) // _MAX_POINTS)
    return [(x, math.log10(y) if panel.logarithmic else y) for x, y in points[::stride]]


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
    font = ImageFont.load_default(14)
    curves = {name: _points(panel, name) for name in panel.curves}
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    left, right, upper, lower = _MARGIN, _WIDTH - 16, top + 54, top + _HEIGHT - 28
    x_low, x_high, y_low, y_high = *_range(xs), *_range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * (right - left)
        return across, lower - (y - y_low) / (y_high - y_low) * (lower - upper)

    for tick in _logarithmic_ticks(y_low, y_high) if panel.logarithmic else _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        draw.line([(left, y), (right, y)], fill=_GRID)
        label = f"{10**tick:.3g}" if panel.logarithmic else f"{tick:.4g}"
        draw.text((left - 6, y), label, fill=_INK, font=font, anchor="rm")
    for tick in _ticks(x_low, x_high):
        draw.text((place(tick, y_low)[0], lower + 6), f"{tick:g}", fill=_INK, font=font, anchor="ma")
    draw.text((left, top + 8), panel.title, fill=_INK, font=font)
    across = float(left)
    for (name, points), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        places = [place(x, y) for x, y in points]
        if len(places) > 1:
            draw.line(places, fill=colour, width=2, joint="curve")
        for x, y in places if len(places) < 40 else []:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        draw.text((across, top + 28), name, fill=colour, font=font)
        across += draw.textlength(name, font) + 16


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two bounds."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= rough)
    first = math.ceil(low / step)
    return [step * index for index in range(first, math.floor(high / step) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """The powers of ten between two exponents, with their multiples by 2 and 5 where that leaves few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [power + math.log10(multiple) for power in powers for multiple in (1, 2, 5)]
    if high - low > 3:
        ticks = [float(power) for power in powers]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) > 1 else _ticks(low, high)


_GRID_NAME = "samples"
_NOT_FIGURES = ("step", "phase", "seconds_left")


class RunLoggers:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[RunLogger]) -> None:
        self._loggers = loggers

    def note(self, text: str) -> None:
        """Pass it on."""
        for logger in self._loggers:
            logger.note(text)

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Pass it on."""
        for logger in self._loggers:
            logger.record(record, total_steps)

    def show(self, grid: Path, step: int) -> None:
        """Pass it on."""
        for logger in self._loggers:
            logger.show(grid, step)

    def advance(self, what: str, done: int, total: int | None) -> None:
        """Pass it on."""
        for logger in self._loggers:
            logger.advance(what, done, total)


class TensorBoardTracker:
    """Writes event files. A continued run goes on after the step it continued from. UsageError without TensorBoard."""

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

    def show(self, grid: Path, step: int) -> None:
        """The image, on the page of images."""
        with Image.open(grid) as image:
            self._writer.add_image(_GRID_NAME, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def advance(self, what: str, done: int, total: int | None) -> None:
        """Nothing: it is for whoever waits."""


class WandbTracker:
    """Logs to a project of Weights & Biases. A continued run goes on under the same id. UsageError without wandb."""

    def __init__(self, project: str, directory: Path, recipe: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError("logging.wandb_project needs its package: pip install 'dcae[wandb]'") from error
        self._image = wandb.Image
        name = "-".join(directory.resolve().parts[-2:])
        self._run = wandb.init(project=project, id=name, dir=str(directory), config=recipe, resume="allow")

    def note(self, text: str) -> None:
        """Nothing: notes are for the terminal."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """All figures of the step."""
        self._run.log(_figures(record), step=record["step"])

    def show(self, grid: Path, step: int) -> None:
        """The image, beside the figures of its step."""
        self._run.log({_GRID_NAME: self._image(str(grid))}, step=step)

    def advance(self, what: str, done: int, total: int | None) -> None:
        """Nothing: it is for whoever waits."""


def open_trackers(
    settings: LoggingSettings, directory: Path, first_step: int, recipe: dict[str, Any]
) -> list[RunLogger]:
    """The trackers that a recipe asks for."""
    trackers: list[RunLogger] = []
    if settings.tensorboard:
        trackers.append(TensorBoardTracker(directory / "tensorboard", first_step))
    if settings.wandb_project is not None:
        trackers.append(WandbTracker(settings.wandb_project, directory, recipe))
    return trackers


def plot_metrics(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a run's losses, its validation and its learning rates over the steps."""
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
