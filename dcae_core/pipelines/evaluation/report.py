"""One page to look at an evaluation with: no network, no script, readable on a phone and in the dark."""

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from dcae_core.data.images import uint8_to_image
from dcae_core.data.latents.statistics import LatentStatistics
from dcae_core.files import make_directory, write_text
from dcae_core.pipelines.comparison import ERROR_AT_WHITE, ERROR_COLOURS, colour_errors, error_levels
from dcae_core.pipelines.evaluation.scores import METRICS, Evaluation, ShownImage, compare_with_expected
from dcae_core.recipes.evaluate import Expectation


def data_url(image: Image.Image | Tensor) -> str:
    """An image as text that an <img> shows; JPEG of quality 95 without chroma subsampling."""
    shown = image if isinstance(image, Image.Image) else uint8_to_image(image)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str, marks: str, description: str) -> str:
    base = _HEIGHT - _BOTTOM
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y.place(t):.1f}" y2="{y.place(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y.place(t) + 4:.1f}" text-anchor="end">{y.label(t)}</text>'
        for t in y.ticks
    )
    ticks = "".join(
        f'<text class="tick" x="{x.place(t):.1f}" y="{base + 18}" text-anchor="middle">{x.label(t)}</text>'
        for t in x.ticks
    )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    labels = (
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="axis upright" x="12" y="{(_TOP + base) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + base) / 2})">{escape(y_label)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{grid}{ticks}{labels}{marks}</svg>"
    )


def _x_axis(low: float, high: float, *, include_ends: bool = True) -> _Axis:
    return _Axis(low, high, _LEFT, _WIDTH - _RIGHT, include_ends=include_ends)


def _y_axis(low: float, high: float) -> _Axis:
    return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)


def histogram(values: Sequence[float], label: str) -> str:
    """How many images have which value."""
    finite = [value for value in values if math.isfinite(value)]
    bins = min(_MAX_BINS, max(5, math.ceil(math.sqrt(len(finite)))))
    counts, edges = np.histogram(finite, bins=bins)
    x, y = _x_axis(float(edges[0]), float(edges[-1])), _y_axis(0, float(max(counts.max(), 5)))
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count == 0:
            continue
        left, right, top = x.place(low) + 1, x.place(high) - 1, y.place(count)
        bars.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{y.place(0) - top:.1f}"'
            f' rx="2"><title>{count} images from {low:.4g} to {high:.4g}</title></rect>'
        )
    return _frame(x, y, label, "images", "".join(bars), f"histogram of {label}")


def sorted_values(values: Sequence[float], names: Sequence[str], label: str) -> str:
    """Every image's value, from the lowest to the highest (evenly chosen ones where there are very many)."""
    order = sorted((i for i, value in enumerate(values) if math.isfinite(values[i])), key=lambda i: values[i])
    if len(order) > _MAX_POINTS:
        order = [order[round(k * (len(order) - 1) / (_MAX_POINTS - 1))] for k in range(_MAX_POINTS)]
    shares = [100 * (k + 0.5) / len(order) for k in range(len(order))]
    x, y = _x_axis(0, 100), _y_axis(values[order[0]], values[order[-1]])
    dots = "".join(
        f'<circle class="dot" cx="{x.place(share):.1f}" cy="{y.place(values[i]):.1f}" r="3.5">'
        f"<title>{escape(names[i])}: {values[i]:.4g}</title></circle>"
        for share, i in zip(shares, order, strict=True)
    )
    return _frame(x, y, "share of images below (%)", label, dots, f"{label} of every image, sorted")


def channel_statistics(mean: Sequence[float], std: Sequence[float]) -> str:
    """Mean of every latent channel, with a line that reaches one standard deviation to each side."""
    low = min(m - s for m, s in zip(mean, std, strict=True))
    high = max(m + s for m, s in zip(mean, std, strict=True))
    x, y = _x_axis(-1, len(mean), include_ends=False), _y_axis(min(low, 0), max(high, 0))
    x.ticks = [float(tick) for tick in range(0, len(mean), max(1, round(_round_step(len(mean) / 6))))]
    marks = "".join(
        f"<g><title>channel {i}: mean {m:.3g}, standard deviation {s:.3g}</title>"
        f'<line class="span" x1="{x.place(i):.1f}" x2="{x.place(i):.1f}" y1="{y.place(m - s):.1f}" '
        f'y2="{y.place(m + s):.1f}"/><circle class="dot" cx="{x.place(i):.1f}" cy="{y.place(m):.1f}" r="3"/></g>'
        for i, (m, s) in enumerate(zip(mean, std, strict=True))
    )
    return _frame(x, y, "latent channel", "value", marks, "mean and standard deviation of every latent channel")


REPORT_NAME = "index.html"


def write_report(directory: Path, evaluation: Evaluation, expected: Mapping[str, Expectation]) -> Path:
    """Write `index.html`, which needs no other file, and `evaluation.json` with every number; return the page.

    The same evaluation gives the same bytes. About 0.5 MB for each image shown at 512 pixels.

    Raises:
        ResourceError: the directory cannot be written to.
    """
    make_directory(directory)
    document = json.dumps(evaluation.to_dict(), indent=2, default=str)
    write_text(directory / "evaluation.json", document + "\n")
    page = directory / REPORT_NAME
    write_text(page, _page(evaluation, expected))
    return page


def _page(evaluation: Evaluation, expected: Mapping[str, Expectation]) -> str:
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = f"Evaluation: {evaluation.subject}"
    sections = (
        _scores(evaluation, expected),
        _distributions(evaluation),
        _images(evaluation.shown),
        "" if evaluation.latent is None else _latent(evaluation.latent),
        _settings(evaluation),
        _damaged(evaluation.damaged),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="quiet">{evaluation.num_images} images, measured with dcae</p>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _row(cells: Iterable[tuple[str, str]], tag: str = "td") -> str:
    return "<tr>" + "".join(f'<{tag} class="{kind}">{text}</{tag}>' for kind, text in cells) + "</tr>"


def _table(rows: Iterable[str]) -> str:
    return f"<table>{''.join(rows)}</table>"


def _scores(evaluation: Evaluation, expected: Mapping[str, Expectation]) -> str:
    head = [("", "Metric"), ("number", "Measured"), ("number", "Spread")]
    if expected:
        head += [("number", "Published"), ("", "Verdict")]
    rows = [_row(head, "th")]
    for comparison in compare_with_expected(evaluation, expected):
        better = ""
        if comparison.name in METRICS:
            better = " ↑" if METRICS[comparison.name].higher_is_better else " ↓"
        cells = [("name", escape(comparison.label) + better), ("number score", comparison.measured_text)]
        cells.append(("number", comparison.spread_text))
        if expected:
            cells += [("number", comparison.expected_text), (comparison.verdict, comparison.verdict)]
        rows.append(_row(cells))
    warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in evaluation.warnings)
    arrows = '<p class="quiet">↑ higher is better, ↓ lower is better; ± one standard deviation.</p>'
    return f"<h2>Scores</h2>{warnings}{_table(rows)}{arrows}"


def _distributions(evaluation: Evaluation) -> str:
    cards = []
    for name, values in evaluation.values.items():
        if sum(map(math.isfinite, values)) < 2:
            continue
        label = METRICS[name].label
        cards.append(f'<div class="card"><h3>{label}: how often</h3>{histogram(values, label)}</div>')
        chart = sorted_values(values, evaluation.names, label)
        cards.append(f'<div class="card"><h3>{label}: image by image</h3>{chart}</div>')
    return f'<h2>Over the images</h2><div class="charts">{"".join(cards)}</div>' if cards else ""


def _figure(url: str, caption: str, alternative: str) -> str:
    image = f'<img src="{url}" alt="{escape(alternative)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _images(shown: list[ShownImage]) -> str:
    if not shown:
        return ""
    if shown[0].reconstruction is None:
        figures = "".join(_figure(data_url(item.original), escape(item.name), item.name) for item in shown)
        return f'<h2>Samples</h2><div class="samples">{figures}</div>'
    colours = ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS)
    scale = f'<span class="scale" style="background: linear-gradient(90deg, {colours})"></span>'
    legend = f"Error: mean absolute difference, 0 {scale} {ERROR_AT_WHITE} grey levels and more."
    return f'<h2>Best, median and worst images</h2><p class="quiet">{legend}</p>' + "".join(map(_trio, shown))


def _trio(item: ShownImage) -> str:
    assert item.reconstruction is not None
    error = colour_errors(error_levels(item.original, item.reconstruction))
    values = "".join(f"<span>{METRICS[name].label} {value:.4g}</span>" for name, value in item.values.items())
    figures = (
        _figure(data_url(item.original), "original", f"{item.name}, original")
        + _figure(data_url(item.reconstruction), "reconstruction", f"{item.name}, reconstruction")
        + _figure(data_url(error), "error", f"{item.name}, error map")
    )
    return (
        f'<div class="card image"><div class="image-name"><strong>{item.standing}</strong>'
        f'<span>{escape(item.name)}</span>{values}</div><div class="trio">{figures}</div></div>'
    )


def _latent(latent: LatentStatistics) -> str:
    numbers = f"Over all values: mean {latent.mean:.4f}, rms {latent.rms:.4f}, standard deviation {latent.std:.4f}."
    factor = f"A scaling factor of 1 / rms would be {1 / latent.rms:.4f}." if latent.rms > 0 else ""
    chart = channel_statistics(latent.channel_mean, latent.channel_std)
    text = "Dots are means, lines reach one standard deviation to each side."
    card = f'<div class="card single">{chart}</div><p class="quiet">{text}</p>'
    return f"<h2>Latent channels</h2><p>{numbers} {factor}</p>{card}"


def _flatten(settings: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)


def _settings(evaluation: Evaluation) -> str:
    origins = [] if evaluation.crop is None else [_row([("name", "images"), ("long", escape(evaluation.crop))])]
    origins += [_row([("name", METRICS[s.name].label), ("long", escape(s.origin()))]) for s in evaluation.scores]
    settings = [
        _row([("name", escape(name)), ("long", escape(value))]) for name, value in _flatten(evaluation.settings)
    ]
    return f"<h2>How it was measured</h2>{_table(origins)}<h2>Settings</h2>{_table(settings)}"


def _damaged(lines: list[str]) -> str:
    if not lines:
        return ""
    rows = [_row([("long", escape(line))]) for line in lines]
    return f"<h2>Damaged images, left out ({len(lines)})</h2>{_table(rows)}"
