"""Parquet files with images, as the Hugging Face hub keeps them; tests that write one are skipped without pyarrow."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def encoded(number: int, side: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (20 * number % 256, 10, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, rows: list[dict[str, Any]], group: int = 3) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = list(rows[0]) if rows else ["image"]
    columns = {name: pyarrow.array([row[name] for row in rows], image if "image" in name else None) for name in names}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table(columns), file, row_group_size=group)
    return file


def rows(count: int, first: int = 0, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": encoded(first + n), "path": f"{first + n}.png"}}
        | {key: value(n) for key, value in columns.items()}
        for n in range(count)
    ]
