"""`dcae train-ae` from the command line: what it prints, its exit codes, its one line about each failure."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dcae_core.checkpoints import load_autoencoder
from dcae_core.training.loop import Loop
from tests.training.small_runs import phase, recipe_for


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    recipe = recipe_for(tmp_path, phase(), phase("latent_adaptation", resolution=24))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    return path


def test_trains_and_goes_on(dcae, recipe_file: Path, tmp_path: Path) -> None:
    run = dcae("train-ae", recipe_file, "--device", "cpu", "--phase", "full")
    run.assert_succeeds()
    assert "phase full: training all: " in run.stderr
    again = dcae("train-ae", recipe_file, "--device", "cpu")
    again.assert_succeeds()
    assert "continuing after step 4" in again.stderr
    assert "training encoder_head, decoder_stem" in again.stderr
    result = tmp_path / "run" / "autoencoder"
    assert again.stdout == f"trained autoencoder: {result} (dcae reconstruct IMG --model {result})\n"
    assert load_autoencoder(tmp_path / "run" / "autoencoder").scaling_factor > 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_leaves(
    number: int, code: int, dcae, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate, calls = Loop._accumulate, []

    def interrupted(self, batch, meter):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(number)
        return accumulate(self, batch, meter)

    monkeypatch.setattr(Loop, "_accumulate", interrupted)
    stopped = dcae("train-ae", recipe_file, "--device", "cpu")
    assert stopped.exit_code == code
    assert "after step 3, saved in" in stopped.stderr
    finished = dcae("train-ae", recipe_file, "--device", "cpu")
    finished.assert_succeeds()
    assert "continuing after step 3" in finished.stderr


def test_dry_run_prints_what_will_happen(dcae, recipe_file: Path, tmp_path: Path) -> None:
    run = dcae("train-ae", recipe_file, "--device", "cpu", "--dry-run")
    run.assert_succeeds()
    for words in ("latent_adaptation", "activations GB", "10 images", "images/s", "begins at step 0"):
        assert words in run.stdout
    assert not (tmp_path / "run").exists()


def test_json_for_a_program_and_a_number_type_beside_the_recipe(dcae, recipe_file: Path, tmp_path: Path) -> None:
    forecast = json.loads(dcae("train-ae", recipe_file, "--device", "cpu", "--dry-run", "--json").stdout)
    assert [phase["name"] for phase in forecast["phases"]] == ["full", "latent_adaptation"]
    assert (forecast["items"], forecast["num_items"]) == ("images", 10)
    run = dcae("train-ae", recipe_file, "--device", "cpu", "--phase", "full", "--dtype", "bfloat16", "--json")
    assert json.loads(run.stdout) == {"directory": str(tmp_path / "run" / "autoencoder")}
    assert (tmp_path / "run" / "autoencoder" / "dcae.json").is_file()
    assert "precision: bf16" in (tmp_path / "run" / "recipe.yaml").read_text()
    dcae("train-ae", recipe_file, "--dtype", "fp8").assert_fails(2, "--dtype 'fp8'", "bf16")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--set", "phases.full.optimiser.learning_rat=1"), 2, ("learning_rat", "did you mean 'learning_rate'")),
        (("--set", "phases.0.resolution=30"), 2, ("phases.full.resolution", "30 is not a multiple of 4", "take 32")),
        (("--set", "phases.full.train=[encoder_tail]"), 2, ("phases.full.train", "'encoder_head'")),
        (("--set", "phases.1.name=full"), 2, ("full cannot follow full",)),
        (("--set", "network.model=dc-ae-f32c32-in-1"), 2, ("network", "dc-ae-f32c32-in-1.0")),
        (("--set", "network.config.widths=[8]"), 2, ("network",)),
        (("--set", "data.sources.0.path=nowhere"), 3, ("nowhere", "no such file or folder")),
        (("--set", "validation={path: nowhere, resolution: 16}"), 3, ("nowhere",)),
        (("--set", f"seed={10**30}"), 2, ("seed",)),
        (("--set", "data.num_workers=100000"), 2, ("data.num_workers", "1024")),
        (("--set", f"phases.full.resolution={10**9}", "--dry-run"), 4, ("out of memory",)),
        (("--set", "phases.full.latent_channels=[99]"), 2, ("latent_channels", "99")),
        (("--phase", "local_refinement"), 2, ("--phase local_refinement", "full, latent_adaptation")),
        (("--resume", "somewhere"), 2, ("--resume somewhere", "not a checkpoint")),
        (("--device", "cuda:7"), 4, ("cuda",)),
    ],
)
def test_one_line_before_any_training(arguments, code: int, words, dcae, recipe_file: Path, tmp_path: Path) -> None:
    dcae("train-ae", recipe_file, "--device", "cpu", *arguments).assert_fails(code, *words)
    assert not list(tmp_path.glob("run/checkpoints/step_*"))


@pytest.mark.parametrize("fault", ["damaged", "diverging"])
def test_a_failure_ends_the_program_with_its_workers(fault: str, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no image")
    setting, line = {
        "damaged": (f"data.sources=[{{path: {tmp_path / 'bad'}}}]", "dcae: none of the 3 images can be decoded"),
        "diverging": ("phases.full.optimiser.learning_rate=1e30", "dcae: step 1 (phase full): the loss"),
    }[fault]
    command = [sys.executable, "-m", "dcae_cli", "train-ae", str(recipe_file), "--device", "cpu"]
    command += ["--set", "data.num_workers=2", "--set", setting]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 3
    assert run.stderr.splitlines()[-1].startswith(line)


def test_unknown_recipe(dcae) -> None:
    dcae("train-ae", "tyny").assert_fails(2, "tyny")
    dcae("train-ae", "finetune-decodr").assert_fails(2, "finetune-decoder")


def test_recipes_commands(dcae, recipe_file: Path) -> None:
    listed = dcae("recipes", "list", "--json")
    listed.assert_succeeds()
    names = [entry["name"] for entry in json.loads(listed.stdout)]
    assert "train_ae/tiny" in names
    assert "train_ae/tiny" in dcae("recipes").stdout
    shown = dcae("recipes", "show", "train_ae/tiny")
    assert shown.stdout.startswith("# Trains the embedded model")
    checked = dcae("recipes", "check")
    assert checked.stdout == f"{len(names)} recipes are right\n"
    assert dcae("recipes", "check", recipe_file).stdout == "1 recipe is right\n"
    assert json.loads(dcae("recipes", "check", "--json").stdout) == {"recipes": len(names), "faults": []}
    assert json.loads(dcae("recipes", "show", "train_ae/tiny", "--json").stdout)["text"] == shown.stdout
    recipe_file.write_text(recipe_file.read_text().replace('"seed"', '"sed"'))
    dcae("recipes", "check", recipe_file).assert_fails(2, "sed", "did you mean 'seed'")
    recipe_file.write_text(recipe_file.read_text().replace('"adjacent_stages": 0', '"adjacent_stages": 2'))
    report = dcae("recipes", "check", recipe_file)
    assert report.exit_code == 2
    for fault in (
        "4 faults",
        "did you mean 'seed'",
        "the encoder's 2 stages",
        "phases.full.adjacent_stages: 2 beside no",
    ):
        assert fault in report.stderr
    schema = json.loads(dcae("recipes", "schema", "train-ae").stdout)
    assert schema["properties"]["seed"]["description"]
    dcae("recipes", "schema", "train-a").assert_fails(2, "train-ae")
    dcae("recipes", "show", "nothing").assert_fails(2, "nothing")


@pytest.mark.parametrize("log", ["/dev/full", "closed"])
def test_a_log_that_cannot_be_written_does_not_end_a_training(log: str, recipe_file: Path, tmp_path: Path) -> None:
    redirections = "<&- >&- 2>&-" if log == "closed" else f"2>{log}"
    command = f"'{sys.executable}' -m dcae_cli train-ae '{recipe_file}' --device cpu {redirections}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert load_autoencoder(tmp_path / "run" / "autoencoder").scaling_factor > 0


def test_steps_are_shown_before_the_first_record_and_statistics_at_the_end(
    dcae, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcae_cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    run = dcae("train-ae", recipe_file, "--device", "cpu", "--phase", "full", "--set", "logging.every=1000")
    run.assert_succeeds()
    assert re.search(r"^full: 0/\d+ steps, 0:00:\d\d so far$", run.stderr, re.MULTILINE)
    assert re.search(r"^full: 3/\d+ steps, .* steps/s, 0:00:\d\d left$", run.stderr, re.MULTILINE)
    assert re.search(r"^latent statistics: 0/\d+ batches", run.stderr, re.MULTILINE)


def test_a_finished_training_has_nothing_left_to_do_unless_its_result_is_not_there(
    dcae, recipe_file: Path, tmp_path: Path
) -> None:
    command, result = ("train-ae", recipe_file, "--device", "cpu"), tmp_path / "run" / "autoencoder"
    dcae(*command, "--phase", "full").assert_succeeds()
    first = read_folder(result)
    again = dcae(*command, "--phase", "full")
    again.assert_succeeds()
    assert "nothing is left to do" in again.stderr
    assert "latents: mean" not in again.stderr
    assert f"trained autoencoder: {result}" in again.stdout
    dcae(*command).assert_succeeds()  # the other phases: what the first one made is no result of theirs
    last = read_folder(result)
    assert last != first
    weights = next(result.glob("*.safetensors"))
    weights.write_bytes(b"damaged")
    mended = dcae(*command)
    mended.assert_succeeds()
    assert "latents: mean" in mended.stderr
    assert read_folder(result) == last
    shutil.rmtree(result)
    dcae(*command).assert_succeeds()
    assert read_folder(result) == last


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_time_left_is_smoothed(tmp_path: Path) -> None:
    loop = Loop.__new__(Loop)
    loop._steps_timed, loop._seconds_per_step = 0, 0.0
    for seconds in [9.0, *[1.0] * 60]:
        loop._smooth(seconds)
    assert loop._seconds_per_step == pytest.approx(1.0)  # the warm-up is forgotten
    loop._smooth(11.0)
    assert loop._seconds_per_step == pytest.approx(1.2)


def test_images_of_kinds_that_are_not_read_are_counted(dcae, recipe_file: Path) -> None:
    [source, *_] = json.loads(recipe_file.read_text())["data"]["sources"]
    (Path(source["path"]) / "a.cr2").write_bytes(b"x")
    run = dcae("train-ae", recipe_file, "--device", "cpu", "--phase", "full", "--set", "phases.0.steps=1")
    assert "left out 1 .cr2" in run.stderr
