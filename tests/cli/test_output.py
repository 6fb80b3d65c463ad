"""What commands print: tables, JSON, progress."""

import json
import os
import select
from pathlib import Path

import pytest

from dcae_cli import progress as progress_module
from dcae_cli.output import print_json, print_table
from dcae_cli.progress import progress


def test_a_table_in_a_pipe_has_one_whole_line_a_row(capsys) -> None:
    name = "a [bold]very[/bold] long name " * 20 + "end.png"
    print_table("Figures", ("image", "PSNR", "note"), [(name, 25.5, None), ("b.png", 7, "x")])
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title == "Figures"
    assert header.split() == ["image", "PSNR", "note"]
    assert first.startswith(name)
    assert first.split()[-2:] == ["25.5", "-"]
    assert first.index("25.5") + len("25.5") == second.index("7") + 1, "numbers are aligned to the right"


def test_a_table_without_rows_still_has_its_columns(capsys) -> None:
    print_table("", ("a", "b"), [])
    assert capsys.readouterr().out.split() == ["a", "b"]


def test_json_takes_paths(capsys) -> None:
    print_json({"file": Path("a/b.png"), "psnr": 1.5})
    assert json.loads(capsys.readouterr().out) == {"file": "a/b.png", "psnr": 1.5}


def test_progress_in_a_log_is_plain_lines_now_and_then_and_a_last_one(capsys, monkeypatch) -> None:
    now = iter([0.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("encode", total=30, unit="images") as advance:
        advance(10)  # too early for a line
        advance(10, note="a.png")
        advance(10)  # the last is always shown
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "encode: 20/30 images, 3.33 images/s a.png",
        "encode: 30/30 images, 4.29 images/s",
    ]


def test_progress_without_a_total_counts_up(capsys, monkeypatch) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("read", total=None, unit="files") as advance:
        advance(5)
    assert capsys.readouterr().err == "read: 5 files, 0.5 files/s\n"


def test_only_the_first_process_shows_progress(capsys, monkeypatch) -> None:
    monkeypatch.setattr("dcae_core.distributed.is_main", lambda: False)
    with progress("encode", total=1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_on_a_terminal_is_a_bar(monkeypatch) -> None:
    import sys

    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("encode [1]", total=2, unit="images") as advance:
            advance(1, note="[a].png")
            advance(1, note="[b].png")
        stream.flush()
        shown = b""
        while select.select([controller], [], [], 0.5)[0]:  # a terminal hands over what it has in pieces
            shown += os.read(controller, 100_000)
    shown = shown.decode()
    assert "encode [1]" in shown
    assert "2/2" in shown
    assert "[b].png" in shown
