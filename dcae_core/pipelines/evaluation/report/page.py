"""The page: scores, what they depend on, how they spread over the pictures, and the pictures themselves."""

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dcae_core.files import make_directory, write_text
from dcae_core.pipelines.error_map import ERROR_AT_WHITE, ERROR_COLOURS, colour_errors, error_levels
from dcae_core.pipelines.evaluation.expectations import compare
from dcae_core.pipelines.evaluation.report.charts import channel_statistics, histogram, sorted_values
from dcae_core.pipelines.evaluation.report.pictures import data_url
from dcae_core.pipelines.evaluation.scores import METRICS, LatentStatistics
from dcae_core.recipes.evaluate import Expectation

if TYPE_CHECKING:
    from dcae_core.pipelines.evaluate import Evaluation, ShownPicture


def write_report(directory: Path, evaluation: "Evaluation", expected: Mapping[str, Expectation]) -> Path:
    """Write `index.html`, which needs no other file, and `evaluation.json` with every number.

    The same evaluation gives the same bytes. About 0.5 MB for each picture shown at 512 pixels.

    Returns:
        The page.

    Raises:
        ResourceError: the directory cannot be written to.
    """
    make_directory(directory)
    document = json.dumps(evaluation.to_dict(), indent=2, default=str)
    write_text(directory / "evaluation.json", document + "\n")
    page = directory / "index.html"
    write_text(page, _page(evaluation, expected))
    return page


def _page(evaluation: "Evaluation", expected: Mapping[str, Expectation]) -> str:
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    title = f"Evaluation: {evaluation.subject}"
    sections = (
        _scores(evaluation, expected),
        _distributions(evaluation),
        _pictures(evaluation.shown),
        "" if evaluation.latent is None else _latent(evaluation.latent),
        _settings(evaluation),
        _damaged(evaluation.damaged),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="quiet">{evaluation.num_pictures} pictures, measured with dcae</p>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _row(cells: Iterable[tuple[str, str]], tag: str = "td") -> str:
    return "<tr>" + "".join(f'<{tag} class="{kind}">{text}</{tag}>' for kind, text in cells) + "</tr>"


def _table(rows: Iterable[str]) -> str:
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>'


def _scores(evaluation: "Evaluation", expected: Mapping[str, Expectation]) -> str:
    head = [("", "Metric"), ("number", "Measured"), ("number", "Spread")]
    if expected:
        head += [("number", "Published"), ("", "Verdict")]
    rows = [_row(head, "th")]
    for comparison in compare(evaluation, expected):
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


def _distributions(evaluation: "Evaluation") -> str:
    cards = []
    for name, values in evaluation.values.items():
        if sum(map(math.isfinite, values)) < 2:
            continue
        label = METRICS[name].label
        cards.append(f'<div class="card"><h3>{label}: how often</h3>{histogram(values, label)}</div>')
        chart = sorted_values(values, evaluation.names, label)
        cards.append(f'<div class="card"><h3>{label}: picture by picture</h3>{chart}</div>')
    return f'<h2>Over the pictures</h2><div class="charts">{"".join(cards)}</div>' if cards else ""


def _figure(url: str, caption: str, alternative: str) -> str:
    image = f'<img src="{url}" alt="{escape(alternative)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _pictures(shown: "list[ShownPicture]") -> str:
    if not shown:
        return ""
    if shown[0].reconstruction is None:
        figures = "".join(_figure(data_url(item.original), escape(item.name), item.name) for item in shown)
        return f'<h2>Samples</h2><div class="samples">{figures}</div>'
    colours = ", ".join(f"rgb{colour}" for colour in ERROR_COLOURS)
    scale = f'<span class="scale" style="background: linear-gradient(90deg, {colours})"></span>'
    legend = f"Error: mean absolute difference, 0 {scale} {ERROR_AT_WHITE} grey levels and more."
    return f'<h2>Best, median and worst pictures</h2><p class="quiet">{legend}</p>' + "".join(map(_trio, shown))


def _trio(item: "ShownPicture") -> str:
    assert item.reconstruction is not None
    error = colour_errors(error_levels(item.original, item.reconstruction))
    values = "".join(f"<span>{METRICS[name].label} {value:.4g}</span>" for name, value in item.values.items())
    figures = (
        _figure(data_url(item.original), "original", f"{item.name}, original")
        + _figure(data_url(item.reconstruction), "reconstruction", f"{item.name}, reconstruction")
        + _figure(data_url(error), "error", f"{item.name}, error map")
    )
    return (
        f'<div class="card picture"><div class="picture-name"><strong>{item.standing}</strong>'
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


def _settings(evaluation: "Evaluation") -> str:
    origins = [_row([("name", METRICS[s.name].label), ("long", escape(s.origin()))]) for s in evaluation.scores]
    settings = [
        _row([("name", escape(name)), ("long", escape(value))]) for name, value in _flatten(evaluation.settings)
    ]
    return f"<h2>How it was measured</h2>{_table(origins)}<h2>Settings</h2>{_table(settings)}"


def _damaged(lines: list[str]) -> str:
    if not lines:
        return ""
    rows = [_row([("long", escape(line))]) for line in lines]
    return f"<h2>Damaged pictures, left out ({len(lines)})</h2>{_table(rows)}"
