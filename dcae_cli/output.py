"""What a command prints on standard output: a table for people, or one JSON document for machines."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from dcae_core.errors import printable

_UNLIMITED_WIDTH = 10_000


def print_json(document: Any) -> None:
    """Print `document` as indented JSON. Paths and other objects are printed as their text."""
    print(json.dumps(document, indent=2, default=str))


def show_value(value: Any) -> str:
    """A fact as a cell of a table: four digits of a number, sides as 8 x 4 x 4, a dash for what is not known."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return (" x " if all(isinstance(each, int) for each in value) else " ").join(map(show_value, value))
    return "-" if value is None else str(value)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: numbers to the right, text to the left, None as a dash.

    On a terminal long cells wrap, but for the first column, which names the row and is there to be copied; in a pipe or
    a file every row is one line of any width.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, name in enumerate(columns):
        numeric = rows and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(
            Text(name), justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0, min_width=len(name)
        )
    for row in rows:
        table.add_row(*(Text("-" if cell is None else printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH, highlight=False)
    # Rendered first and printed by us: rich would end the process in its own way when the reader of a pipe has gone.
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))
