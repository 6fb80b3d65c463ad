"""Charts as SVG: drawn in the page's own colours, so that they follow light and dark; each mark tells its value."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

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
    """How many pictures have which value."""
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
            f' rx="2"><title>{count} pictures from {low:.4g} to {high:.4g}</title></rect>'
        )
    return _frame(x, y, label, "pictures", "".join(bars), f"histogram of {label}")


def sorted_values(values: Sequence[float], names: Sequence[str], label: str) -> str:
    """Every picture's value, from the lowest to the highest (evenly chosen ones where there are very many)."""
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
    return _frame(x, y, "share of pictures below (%)", label, dots, f"{label} of every picture, sorted")


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
