"""Recipes: whatever YAML can say is read, or a fault with its line."""

import pytest

from tests.hostile.child import run_dcae
from tests.hostile.material import write

VALUES = {
    "!!int abc": "line 2",
    "!!float abc": "line 2",
    "!!bool maybe": "line 2",
    "!!timestamp x": "line 2",
    "!!timestamp 2001-99-99": "line 2",
    "!!binary é": "line 2",
    "!!set [1]": "line 2",
    "!!int [1]": "line 2",
    "!!map 3": "line 2",
    "9" * 5000: "line 2",
    "9" * 40: "line 2",
    '"\\ud800"': "line 2",
    '"\\U0fffffff"': "line 2",
    "!!python/object/apply:os.system [ls]": "line 2",
    "!!set {a}": "seed",
    "!!timestamp 2001-01-01": "seed",
}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_a_value_that_cannot_be_made_is_a_fault_with_its_line(tmp_path, value) -> None:
    path = write(tmp_path / "r.yaml", f"command: encode-dataset\nseed: {value}\n")
    run_dcae("encode-dataset", path).assert_fails(2, "r.yaml", VALUES[value])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_the_same_on_the_command_line(value) -> None:
    run = run_dcae("train-ae", "tiny", "--dry-run", "--set", f"seed={value}")
    assert run.exit_code == 2, run.stderr
    run.assert_clean()


@pytest.mark.parametrize("command", ["[a]", "{a: 1}", "!!set {a}", "1", "null"])
def test_a_command_that_is_no_word(tmp_path, command) -> None:
    path = write(tmp_path / "r.yaml", f"command: {command}\nseed: 0\n")
    for arguments in (("recipes", "check", path), ("encode-dataset", path), ("train-ae", path)):
        run = run_dcae(*arguments)
        assert run.exit_code == 2, run.stderr
        run.assert_clean()


@pytest.mark.parametrize("position", ["9" * 5000, "1" * 30, "²", "-1"])
def test_a_position_in_a_list_that_is_no_position(position) -> None:
    run = run_dcae("train-ae", "tiny", "--dry-run", "--set", f"phases.{position}.steps=1")
    assert run.exit_code == 2, run.stderr
    run.assert_clean()
    assert len(run.stderr) < 1000


def test_of_very_many_faults_the_first_fifty_and_a_count_are_shown(tmp_path) -> None:
    lines = "".join(f"key{number}: 1\n" for number in range(8000))
    path = write(tmp_path / "r.yaml", f"command: encode-dataset\n{lines}")
    run = run_dcae("encode-dataset", path)
    assert run.exit_code == 2
    run.assert_clean()
    assert "8000 faults" in run.stderr
    assert "7,950 more" in run.stderr
    assert run.stderr.count("\n") < 60
    assert len(run.stderr) < 40_000
    assert run.seconds < 90


def test_a_key_of_half_a_megabyte_is_shortened(tmp_path) -> None:
    path = write(tmp_path / "r.yaml", f"command: encode-dataset\n{'k' * 1000}: 1\n")
    run = run_dcae("encode-dataset", path)
    assert run.exit_code == 2
    assert len(run.stderr) < 3000


@pytest.mark.parametrize("name", ["r\x1b[31m.yaml", "r\n.yaml"])
def test_a_recipes_name_is_shown_escaped(tmp_path, name) -> None:
    path = write(tmp_path / name, "command: encode-dataset\nsede: 1\n")
    run_dcae("encode-dataset", path).assert_fails(2, "sede")
