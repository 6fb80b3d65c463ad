"""Completion, settings without --set, copies of recipes, where caches are, saying less and more."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY_TEST = ROOT / "recipes" / "train_ae" / "tiny.yaml"


def completions(line: str) -> list[str]:
    words = line.split(" ")
    environment = os.environ | {
        "_DCAE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    run = subprocess.run(
        [sys.executable, "-m", "dcae_cli"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dcae rec", ["reconstruct", "recipes"]),
        ("dcae reconstruct --model dc-ae-f64", ["dc-ae-f64c128-in-1.0", "dc-ae-f64c128-mix-1.0"]),
        ("dcae train-ae ti", ["tiny"]),
        ("dcae recipes copy train_diffusion/ti", ["train_diffusion/tiny"]),
        ("dcae sample --sampler dpm", ["dpm-solver", "dpm-2m", "dpm-3m"]),
        ("dcae wrong --mod", []),
    ],
)
def test_a_shell_completes_commands_models_recipes_and_samplers(line: str, expected: list[str]) -> None:
    assert set(expected) <= set(completions(line))
    assert bool(expected) == bool(completions(line))


def test_completion_is_installed_by_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dcae_cli", "--show-completion"]
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    script = subprocess.run([*command, "bash"], env=environment, capture_output=True, text=True, timeout=120)
    assert "_DCAE_COMPLETE=complete_bash" in script.stdout
    command[-1] = "--install-completion"
    subprocess.run([*command, "bash"], env=environment, capture_output=True, timeout=120, check=True)
    assert "dcae" in (tmp_path / ".bashrc").read_text()


def test_settings_need_no_set_before_them(dcae) -> None:
    dcae("train-ae", "tiny", "--set", "seed=1", "seeed=2").assert_fails(2, "seeed", "did you mean")
    dcae("train-diffusion", "tiny", "--set", "latents=here", "latents=elsewhere").assert_fails(3, "elsewhere")


@pytest.mark.parametrize("command", ["train-ae", "train-diffusion"])
def test_a_word_after_the_recipe_that_is_no_setting_is_refused(command: str, dcae) -> None:
    dcae(command, "tiny", "everything").assert_fails(2, "'everything'", "seed=1")


def test_a_recipe_is_copied_and_nothing_replaced(dcae, tmp_path: Path) -> None:
    mine = tmp_path / "new" / "mine.yaml"
    dcae("recipes", "copy", "train_ae/tiny", mine).assert_succeeds()
    assert mine.read_bytes() == TINY_TEST.read_bytes()
    dcae("recipes", "copy", "train_ae/finetune-decoder", mine).assert_fails(2, "mine.yaml", "is there already")
    assert mine.read_bytes() == TINY_TEST.read_bytes()
    dcae("recipes", "copy", "train_ae/tinny", tmp_path / "x").assert_fails(2, "train_ae/tiny")
    copied = dcae("recipes", "copy", "train_ae/tiny", tmp_path, "--json")
    assert json.loads(copied.stdout)["file"] == str(tmp_path / "tiny.yaml")


def test_one_variable_moves_everything_of_ours_that_is_cached(dcae, monkeypatch, tmp_path: Path) -> None:
    from dcae_core.files import cache_directory

    monkeypatch.setenv("DCAE_CACHE", str(tmp_path / "here"))
    assert cache_directory("latents") == tmp_path / "here" / "latents"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(b"12345")
    facts = json.loads(dcae("info", "--json").stdout)
    assert facts["own_cache"] == {"path": str(tmp_path / "here"), "bytes": 5}
    assert "here" in dcae("info").stdout


@pytest.mark.parametrize("arguments", [("reconstruct", "x.png", "-q"), ("models", "list", "--verbose")])
def test_an_option_of_the_program_behind_the_command_is_put_in_its_place(dcae, arguments) -> None:
    *command, option = (word for word in arguments if word != "x.png")
    dcae(*arguments).assert_fails(2, f"{option} stands before the command: dcae {option} {' '.join(command)} ...")


def test_verbose_says_what_is_read_and_quiet_says_nothing(dcae, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BEFORE_FIRST_SIGN", 0.0)
    image = ROOT / "examples" / "test_images" / "chelsea.png"
    arguments = ("reconstruct", image, "--resolution", 64, "--device", "cpu", "-o", tmp_path)
    verbose = dcae("-v", *arguments)
    verbose.assert_succeeds()
    assert "dcae: reading " in verbose.stderr
    plain = dcae(*arguments)
    assert "dcae: reading " not in plain.stderr
    quiet = dcae("-q", *arguments)
    quiet.assert_succeeds()
    assert quiet.stderr == ""
    dcae("-q", "-v", "info").assert_fails(2, "-q")


def test_a_warning_of_the_library_is_one_line(dcae, capsys) -> None:
    dcae("--version").assert_succeeds()
    dcae("models").assert_succeeds()
    logging.getLogger("dcae_core.weights").warning("a warning\x1b[31m")
    assert capsys.readouterr().err == "dcae: a warning\\x1b[31m\n"
