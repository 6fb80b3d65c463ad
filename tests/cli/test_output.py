"""What commands print: tables, JSON, progress."""

import json
import os
import select
import sys
import time
from pathlib import Path

import pytest

from dcae_cli import progress as progress_module
from dcae_cli.output import print_json, print_table
from dcae_cli.progress import Pace, progress


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
        "encode: 20/30 images, 2 images/s, 0:00:05 left a.png",
        "encode: 30/30 images, 3.35 images/s, took 0:00:07",
    ]


def test_progress_without_a_total_counts_up(capsys, monkeypatch) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("read", total=None, unit="files") as advance:
        advance(5)
    assert capsys.readouterr().err == "read: 5 files, 0.5 files/s, 0:00:10 so far\n"


def test_work_that_reports_nothing_is_seen_to_go_on(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BEFORE_FIRST_SIGN", 0.05)
    with progress("reconstruct", total=1) as advance:
        advance(0, note="loading the weights")
        time.sleep(0.3)
    assert capsys.readouterr().err.startswith("reconstruct: 0/1 images, 0:00:00 so far loading the weights\n")


def test_the_first_sign_comes_within_two_seconds() -> None:
    assert progress_module.SECONDS_BEFORE_FIRST_SIGN < 2


def test_one_unit_that_is_soon_done_says_nothing(capsys) -> None:
    with progress("reconstruct", total=1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_parts_of_a_unit_move_the_time_left(capsys, monkeypatch) -> None:
    now = iter([0.0, 6.0, 12.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("reconstruct", total=1) as advance:
        advance(0, note="tile 1/4", part=0.25)
        advance(0, note="tile 2/4", part=0.5)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "reconstruct: 0/1 images, 0.0417 images/s, 0:00:12 left tile 2/4"


def test_one_slow_unit_moves_the_time_left_by_little() -> None:
    pace = Pace()
    for now in range(61):
        pace.report(1, now)
    assert pace.seconds_left(100, 60) == pytest.approx(100)
    pace.report(1, 70)  # ten times as long as the others
    assert 100 < pace.seconds_left(100, 70) < 130


def test_what_was_kept_from_before_is_not_taken_for_speed() -> None:
    pace = Pace()
    pace.report(1_000_000, 0.001)
    assert pace.seconds_left(10, 0.001) is None
    pace.report(1, 2.001)
    assert pace.seconds_left(10, 2.001) == pytest.approx(20)


def test_a_run_that_goes_on_does_not_begin_with_a_rate(capsys, monkeypatch) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    with progress("train", total=6000, unit="steps") as advance:
        advance(1762)
    assert capsys.readouterr().err == "train: 1762/6000 steps, 0:00:10 so far\n"


def test_only_the_first_process_shows_progress(capsys, monkeypatch) -> None:
    monkeypatch.setattr("dcae_core.distributed.is_main", lambda: False)
    with progress("encode", total=1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_on_a_terminal_is_a_bar(monkeypatch) -> None:
    def work() -> None:
        with progress("encode [1]", total=2, unit="images") as advance:
            advance(1, note="[a].png")
            advance(1, note="[b].png")

    shown = on_a_terminal(monkeypatch, work)
    assert "encode [1]" in shown
    assert "2/2" in shown
    assert "[b].png" in shown


def test_work_without_units_is_shown_by_its_name_alone(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BEFORE_FIRST_SIGN", 0.05)
    with progress("loading the weights", total=0):
        time.sleep(0.3)
    assert capsys.readouterr().err.startswith("loading the weights: 0:00:00 so far\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_training_on_a_terminal_counts_each_step(monkeypatch) -> None:
    from dcae_cli.training_display import training_display

    monkeypatch.setattr("dcae_cli.progress._SECONDS_BETWEEN_BARS", 0.0)
    monkeypatch.setattr("dcae_cli.progress._Bar.seconds_between", 0.0)
    shown = on_a_terminal(monkeypatch, lambda: train_three_steps(training_display))
    for words in ("full", "3/4", "loss 0.5", "12 images/s", "validation.psnr 20"):
        assert words in shown


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_narrow_terminal_cuts_the_words_and_never_the_count(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    def work() -> None:
        with progress("a description", total=1000) as advance:
            advance(1000, note="a very long name of a file " * 4)

    assert "1000/1000" in on_a_terminal(monkeypatch, work)


def train_three_steps(training_display) -> None:
    speed = {"images_per_second": 12.0, "loader_images_per_second": 99.0, "loader_wait": 0.0, "seconds_left": 1.0}
    with training_display() as logger:
        for step in range(4):
            logger.advance("full", step, 4)
            if step == 2:
                logger.record({"step": 2, "phase": "full", "loss": 0.5} | speed, 4)
                logger.record({"step": 2, "phase": "full", "validation.psnr": 20.0}, 4)


def on_a_terminal(monkeypatch, work) -> str:
    """What `work` shows where standard error is a terminal."""
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        work()
        stream.flush()
        shown = b""
        while select.select([controller], [], [], 0.5)[0]:  # a terminal hands over what it has in pieces
            shown += os.read(controller, 100_000)
    return shown.decode()
