"""What is on the page of `dcae eval --report`; how it looks is in templates/evaluation.html."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dcae_core.files import make_directory, write_text
from dcae_core.pipelines.comparison import ERROR_AT_WHITE, ERROR_COLOURS, colour_errors, error_levels
from dcae_core.pipelines.evaluation.scores import METRICS, Evaluation, ExpectedFigure, ShownImage, compare_with_expected
from dcae_core.pipelines.pages import data_url, render
from dcae_core.recipes.evaluate import Expectation

_WIDTH, _HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 22, 10, 42
_MAX_BINS = 30
_MAX_POINTS = 400


class _Axis:
    """A range of values on a range of pixels, with round numbers to label it by."""

    def __init__(self, low: float, high: float, start: float, stop: float, *, include_ends: bool = True) -> None:
        if high <= low:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / 5)
        if include_ends:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        self._low, self._high, self._start, self._stop = low, high, start, stop
        count = math.floor((high - low) / step + 1e-9) + 1
        self.ticks = [low + step * index for index in range(count)]
        self._decimals = max(0, -math.floor(math.log10(step) + 1e-9))

    def place(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._stop - self._start)

    def label(self, value: float) -> str:
        return f"{value + 0.0:.{self._decimals}f}"


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= step * 0.999)


@dataclass(frozen=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    title: str
    radius: float
    span: tuple[float, float] | None = None  # of a line behind it, from top to bottom


@dataclass(frozen=True)
class Chart:
    """What the template draws: two axes, and bars, dots or a line through them, all in pixels."""

    x: _Axis
    y: _Axis
    x_label: str
    y_label: str
    description: str
    bars: list[_Bar] = field(default_factory=list)
    dots: list[_Dot] = field(default_factory=list)
    has_line: bool = False  # from dot to dot

    width, height = _WIDTH, _HEIGHT
    left, right, base = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    middle, half = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2


def _x_axis(low: float, high: float, *, include_ends: bool = True) -> _Axis:
    return _Axis(low, high, Chart.left, Chart.right, include_ends=include_ends)


def _y_axis(low: float, high: float) -> _Axis:
    return _Axis(low, high, Chart.base, _TOP)


def histogram(values: Sequence[float], label: str) -> Chart:
    """How many images have which value."""
    finite = [value for value in values if math.isfinite(value)]
    bins = min(_MAX_BINS, max(5, math.ceil(math.sqrt(len(finite)))))
    counts, edges = np.histogram(finite, bins=bins)
    x, y = _x_axis(float(edges[0]), float(edges[-1])), _y_axis(0, float(max(counts.max(), 5)))
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count > 0:
            left, right, top = x.place(low) + 1, x.place(high) - 1, y.place(count)
            title = f"{count} images from {low:.4g} to {high:.4g}"
            bars.append(_Bar(left, top, right - left, y.place(0) - top, title))
    return Chart(x, y, label, "images", f"histogram of {label}", bars=bars)


def sorted_values(values: Sequence[float], names: Sequence[str], label: str) -> Chart:
    """Every image's value, from the lowest to the highest (evenly chosen ones where there are very many)."""
    order = sorted((i for i, value in enumerate(values) if math.isfinite(values[i])), key=lambda i: values[i])
    if len(order) > _MAX_POINTS:
        order = [order[round(k * (len(order) - 1) / (_MAX_POINTS - 1))] for k in range(_MAX_POINTS)]
    shares = [100 * (k + 0.5) / len(order) for k in range(len(order))]
    x, y = _x_axis(0, 100), _y_axis(values[order[0]], values[order[-1]])
    dots = [
        _Dot(x.place(share), y.place(values[i]), f"{names[i]}: {values[i]:.4g}", 3.5)
        for share, i in zip(shares, order, strict=True)
    ]
    return Chart(x, y, "share of images below (%)", label, f"{label} of every image, sorted", dots=dots)


def channel_statistics(mean: Sequence[float], std: Sequence[float]) -> Chart:
    """Mean of every latent channel, with a line that reaches one standard deviation to each side."""
    low = min(m - s for m, s in zip(mean, std, strict=True))
    high = max(m + s for m, s in zip(mean, std, strict=True))
    x, y = _x_axis(-1, len(mean), include_ends=False), _y_axis(min(low, 0), max(high, 0))
    x.ticks = [float(tick) for tick in range(0, len(mean), max(1, round(_round_step(len(mean) / 6))))]
    dots = []
    for i, (m, s) in enumerate(zip(mean, std, strict=True)):
        title = f"channel {i}: mean {m:.3g}, standard deviation {s:.3g}"
        dots.append(_Dot(x.place(i), y.place(m), title, 3, (y.place(m - s), y.place(m + s))))
    return Chart(x, y, "latent channel", "value", "mean and standard deviation of every latent channel", dots=dots)


def over_guidance(evaluations: Iterable[Evaluation], name: str) -> Chart:
    """A score at every guidance scale, with a line that reaches its spread to each side where it has one."""
    points = sorted(
        (evaluation.guidance_scale, score.value, score.spread)
        for evaluation in evaluations
        for score in evaluation.scores
        if score.name == name and math.isfinite(score.value)
    )
    scales, values = [point[0] for point in points], [point[1] for point in points]
    spreads = [spread or 0.0 for _, _, spread in points]
    x = _x_axis(min(scales), max(scales))
    y = _y_axis(
        min(v - s for v, s in zip(values, spreads, strict=True)),
        max(v + s for v, s in zip(values, spreads, strict=True)),
    )
    dots = []
    for scale, value, spread in points:
        span = None if spread is None else (y.place(value - spread), y.place(value + spread))
        dots.append(_Dot(x.place(scale), y.place(value), f"guidance {scale:g}: {value:.4g}", 4, span))
    label = METRICS[name].label
    return Chart(x, y, "guidance scale", label, f"{label} over the guidance scale", dots=dots, has_line=True)


REPORT_NAME = "index.html"


def write_report(directory: Path, evaluations: Sequence[Evaluation], expected: Mapping[str, Expectation]) -> Path:
    """Write `index.html`, which needs no other file, and `evaluation.json` with every number; return the page.

    One evaluation is compared with `expected`; of several, at different guidance scales, the page shows how the scores
    move with the scale, and the file holds a list.

    The same evaluation gives the same bytes. About 0.5 MB for each image shown at 512 pixels.

    Raises:
        ResourceError: the directory cannot be written to.
    """
    make_directory(directory)
    documents = [evaluation.to_dict() for evaluation in evaluations]
    document = json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, default=str)
    write_text(directory / "evaluation.json", document + "\n")
    page = directory / REPORT_NAME
    write_text(page, _page(evaluations[0], expected) if len(evaluations) == 1 else _page_of_scales(evaluations))
    return page


def _page_of_scales(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    values = {score.name: [each.measured()[score.name] for each in evaluations] for score in first.scores}
    settings = {key: value for evaluation in evaluations for key, value in evaluation.settings.items()}
    settings["diffusion"] = {
        key: value for evaluation in evaluations for key, value in evaluation.settings["diffusion"].items()
    } | {"guidance_scale": [evaluation.guidance_scale for evaluation in evaluations]}
    return render(
        "guidance_scales.html",
        title=f"Evaluation: {first.subject}",
        num_images=first.num_images,
        warnings=list(dict.fromkeys(line for evaluation in evaluations for line in evaluation.warnings)),
        scales=[
            {
                "scale": f"{evaluation.guidance_scale:g}",
                "scores": [_score(figure) for figure in compare_with_expected(evaluation, {})],
                "samples": _samples(evaluation),
            }
            for evaluation in evaluations
        ],
        charts=[over_guidance(evaluations, name) for name in values if any(map(math.isfinite, values[name]))],
        origins=_origins(first),
        settings=list(_flatten(settings)),
    )


def _page(evaluation: Evaluation, expected: Mapping[str, Expectation]) -> str:
    latent, shown = evaluation.latent, evaluation.shown
    has_reconstructions = bool(shown) and shown[0].reconstruction is not None
    return render(
        "evaluation.html",
        title=f"Evaluation: {evaluation.subject}",
        num_images=evaluation.num_images,
        warnings=evaluation.warnings,
        has_expected=bool(expected),
        scores=[_score(comparison) for comparison in compare_with_expected(evaluation, expected)],
        distributions=list(_distributions(evaluation)),
        samples=[] if has_reconstructions else _samples(evaluation),
        reconstructions=[_reconstruction(item) for item in shown] if has_reconstructions else [],
        error_colours=", ".join(f"rgb{colour}" for colour in ERROR_COLOURS),
        error_at_white=ERROR_AT_WHITE,
        latent=latent,
        latent_chart=None if latent is None else channel_statistics(latent.channel_mean, latent.channel_std),
        origins=_origins(evaluation),
        settings=list(_flatten(evaluation.settings)),
        damaged=evaluation.damaged,
    )


def _samples(evaluation: Evaluation) -> list[dict[str, str]]:
    return [{"name": item.name, "url": data_url(item.original)} for item in evaluation.shown]


def _origins(evaluation: Evaluation) -> list[tuple[str, str]]:
    crop = [] if evaluation.crop is None else [("images", evaluation.crop)]
    return crop + [(METRICS[score.name].label, score.origin()) for score in evaluation.scores]


def _score(comparison: ExpectedFigure) -> dict[str, str]:
    arrow = ""
    if comparison.name in METRICS:
        arrow = " ↑" if METRICS[comparison.name].higher_is_better else " ↓"
    texts = ("label", "measured_text", "spread_text", "expected_text", "verdict")
    return {name: getattr(comparison, name) for name in texts} | {"arrow": arrow}


def _distributions(evaluation: Evaluation) -> Iterable[tuple[str, Chart]]:
    for name, values in evaluation.values.items():
        if sum(map(math.isfinite, values)) >= 2:
            label = METRICS[name].label
            yield f"{label}: how often", histogram(values, label)
            yield f"{label}: image by image", sorted_values(values, evaluation.names, label)


def _reconstruction(item: ShownImage) -> dict[str, Any]:
    assert item.reconstruction is not None
    error = colour_errors(error_levels(item.original, item.reconstruction))
    images: dict[str, Image.Image | Tensor] = {
        "original": item.original,
        "reconstruction": item.reconstruction,
        "error": error,
    }
    return {
        "name": item.name,
        "standing": item.standing,
        "scores": [(METRICS[name].label, value) for name, value in item.values.items()],
        "figures": [(kind, data_url(image)) for kind, image in images.items()],
    }


def _flatten(settings: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)
