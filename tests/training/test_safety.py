"""Kills, full disks, infinities and second runs."""

import errno
import json
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dcae_core.data.sources import DecodedOnDemand
from dcae_core.errors import CheckpointError, DataError, ResourceError, SourceLostError, UsageError
from dcae_core.training import checkpointing
from dcae_core.training.loop import DivergedError
from dcae_core.training.run import RunOptions
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.task import SilentLogger
from dcae_core.training.train_ae import train_autoencoder
from tests.training.small_runs import (
    assert_same,
    checkpoint_contents,
    losses_of,
    phase,
    recipe_for,
    train,
    write_images,
)

CONSTANTLY = {"checkpoints": {"every": 1, "keep": 2}}


def train_in_child(recipe) -> int:
    """The process id of a child that trains and then exits."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
        train(recipe)
        os._exit(0)
    return child


def wait_for_step(run: RunDirectory, step: int, seconds: float = 60.0) -> None:
    """Returns when the checkpoint of ``step`` or of a later one is complete."""
    until = time.monotonic() + seconds
    while step > 0 and (run.latest() is None or int(run.latest().name.removeprefix("step_")) < step):
        assert time.monotonic() < until, f"step {step} was not reached in {seconds:.0f} s"
        time.sleep(0.001)


def test_curves_that_a_kill_kept_from_being_drawn_are_drawn_on_going_on(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    train(recipe)
    curves = RunDirectory(Path(recipe.run_dir)).curves
    drawn = curves.read_bytes()
    curves.unlink()
    train(recipe)
    assert curves.read_bytes() == drawn


def test_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    kills, steps_between = 12, 3
    steps = phase(steps=2 * kills * steps_between, batch_size=2)
    whole = recipe_for(tmp_path, steps, run_dir=str(tmp_path / "whole"), **CONSTANTLY)
    killed = recipe_for(tmp_path, steps, run_dir=str(tmp_path / "killed"), **CONSTANTLY)
    train(recipe_for(tmp_path))  # so that neither the measured run nor the children import what this one did
    start = time.monotonic()
    train(whole)
    duration_of_a_step = (time.monotonic() - start) / steps["steps"]
    moments = random.Random(0)
    run = RunDirectory(tmp_path / "killed")
    last = 0
    for _ in range(kills):
        child = train_in_child(killed)
        wait_for_step(run, last + moments.randrange(steps_between))
        time.sleep(moments.uniform(0.0, 2 * duration_of_a_step))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        contents = checkpoint_contents(run.latest()) if run.latest() else None
        step = contents["state"]["progress"]["step"] if contents else 0
        assert step >= last
        last = step
    assert last > 0
    train(killed)
    a, b = (RunDirectory(tmp_path / name).latest() for name in ("whole", "killed"))
    assert_same(checkpoint_contents(a), checkpoint_contents(b))
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "killed")
    assert not list(run.checkpoints.glob(".*"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(tmp_path, **CONSTANTLY)
    save_file, calls = checkpointing.save_file, []

    def fill_up(tensors, path):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save_file(tensors, path)

    monkeypatch.setattr(checkpointing, "save_file", fill_up)
    with pytest.raises(ResourceError, match="the disk is full"):
        train(recipe)
    run = RunDirectory(tmp_path / "run")
    assert checkpoint_contents(run.latest())["state"]["progress"]["step"] == 2
    monkeypatch.undo()
    train(recipe)
    assert checkpoint_contents(run.latest())["state"]["progress"]["step"] == 4


def test_infinite_loss_names_the_batch_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcae_core.training import losses as reconstruction

    l1_loss, calls = reconstruction.l1_loss, []

    def overflow(x, y):
        calls.append(1)
        return l1_loss(x, y) * (float("inf") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(reconstruction, "l1_loss", overflow)
    with pytest.raises(DivergedError, match=r"step 2 .*the loss .* is not finite.*\.png.*step_2;"):
        train(recipe_for(tmp_path, **CONSTANTLY))
    contents = checkpoint_contents(RunDirectory(tmp_path / "run").latest())
    assert all(value.isfinite().all() for value in contents.values() if isinstance(value, torch.Tensor))


def make_infinite(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int], factor: float = float("inf")) -> None:
    """The L1 loss is multiplied by `factor` in these calls, counted from 1."""
    from dcae_core.training import losses as reconstruction

    l1_loss, calls = reconstruction.l1_loss, []

    def overflow(x, y):
        calls.append(1)
        return l1_loss(x, y) * (factor if len(calls) in bad_calls else 1.0)

    monkeypatch.setattr(reconstruction, "l1_loss", overflow)


class Notes(SilentLogger):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    """The third of four steps: weights, averages, optimiser and buffers stay as the second left them."""
    steps = phase(steps=4, accumulation=accumulation)
    settings = {"on_nonfinite": "skip", "checkpoints": {"every": 1, "keep": 9}}
    make_infinite(monkeypatch, {2 * accumulation + 1})
    logger = Notes()
    recipe = recipe_for(tmp_path, steps, **settings)
    train_autoencoder(recipe, RunOptions(torch.device("cpu")), logger)
    [line] = [line for line in logger.lines if line.startswith("skipped")]
    assert re.search(
        r"step 2 \(phase full\): the loss .* is not finite, in the batch of .*png.*; 1 so far, 1 in a row", line
    )
    checkpoints = [checkpoint_contents(tmp_path / "run" / "checkpoints" / f"step_{step}") for step in (2, 3, 4)]
    before, after, last = checkpoints
    assert (after["state"]["progress"]["skipped"], last["state"]["progress"]["skipped_in_a_row"]) == (1, 0)
    for contents in (before, after):
        contents.pop("state")
    assert_same(before, after)
    assert all(value.isfinite().all() for value in last.values() if isinstance(value, torch.Tensor))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("skipped_steps") for record in records] == [None, None, 1.0, 1.0]
    assert "loss" not in records[2]


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflowing_norm(torch.nn.utils.clip_grad_norm_, 2))
    logger = Notes()
    train_autoencoder(recipe_for(tmp_path, on_nonfinite="skip"), RunOptions(torch.device("cpu")), logger)
    assert any(re.search("step 1 .*the gradient of the autoencoder is not finite", line) for line in logger.lines)


def overflowing_norm(original, bad_call: int):
    """Gradient clipping that finds an infinite norm in one call."""
    calls = []

    def norm(parameters, limit):
        calls.append(1)
        found = original(parameters, limit)
        return found * float("inf") if len(calls) == bad_call else found

    return norm


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in a row where two are allowed; a good step between begins the count anew."""
    steps = phase(steps=9)
    make_infinite(monkeypatch, {2, 3, 5, 6, 7})
    recipe = recipe_for(tmp_path, steps, on_nonfinite="skip", max_skips=2, **CONSTANTLY)
    with pytest.raises(DivergedError, match=r"step 6 .*not finite.*; 2 steps in a row were skipped before it; the"):
        train(recipe)


def test_second_run_on_a_directory_is_refused(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    with RunDirectory(tmp_path / "run").locked(), pytest.raises(UsageError, match="in use by another run"):
        train(recipe)
    train(recipe)


def test_resume_never_does_not_touch_a_run(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    train(recipe)
    with pytest.raises(UsageError, match="already holds a run"):
        train(recipe, resume="never")
    with pytest.raises(UsageError, match="not a checkpoint"):
        train(recipe, resume=str(tmp_path))
    other = recipe_for(tmp_path, run_dir=str(tmp_path / "other"))
    train(other)
    with pytest.raises(UsageError, match="already holds another run"):
        train(recipe, resume=str(RunDirectory(tmp_path / "other").latest()))
    branch = recipe_for(tmp_path, run_dir=str(tmp_path / "branch"))
    assert train(branch, resume=str(RunDirectory(tmp_path / "other").latest())).is_dir()


def test_other_settings_do_not_continue_a_run(tmp_path: Path) -> None:
    train(recipe_for(tmp_path))
    with pytest.raises(UsageError, match=r"other settings \(phases.0.batch_size\)"):
        train(recipe_for(tmp_path, phase(batch_size=2)))
    train(recipe_for(tmp_path, phase(steps=6)))
    assert RunDirectory(tmp_path / "run").latest().name == "step_6"


@pytest.mark.parametrize(
    "name", ["autoencoder.safetensors", "autoencoder.optimiser.pt", "ema.safetensors", "random.pt"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_checkpoint_is_refused_in_one_line(name: str, damage: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, phase(steps=1))
    train(recipe)
    path = RunDirectory(tmp_path / "run").latest() / name
    path.write_bytes(path.read_bytes()[:100]) if damage == "truncated" else path.unlink()
    with pytest.raises(CheckpointError, match="cannot be continued from") as refused:
        train(recipe)
    assert "\n" not in str(refused.value)


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    recipe = recipe_for(tmp_path, phase(steps=1))
    train(recipe)
    (RunDirectory(tmp_path / "run").latest() / "random.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError):
        train(recipe)
    assert not (tmp_path / "owned").exists()


def test_going_back_does_the_later_steps_again(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, phase(steps=5), checkpoints={"every": 1, "keep": 9})
    train(recipe)
    before = losses_of(tmp_path / "run")
    train(recipe, resume=str(tmp_path / "run" / "checkpoints" / "step_2"))
    assert losses_of(tmp_path / "run") == before
    changed = recipe_for(tmp_path, phase(steps=3, ema=None), checkpoints={"every": 1, "keep": 9})
    train(changed, resume=str(tmp_path / "run" / "checkpoints" / "step_2"))
    assert RunDirectory(tmp_path / "run").latest().name == "step_3"
    assert not (tmp_path / "run" / "checkpoints" / "step_3" / "ema.safetensors").exists()


def test_training_in_another_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, recipe_for(tmp_path)).result().is_dir()


def test_old_checkpoints_go_and_chosen_ones_stay(tmp_path: Path) -> None:
    train(recipe_for(tmp_path, phase(steps=7), checkpoints={"every": 1, "keep": 2, "keep_every": 3}))
    names = {path.name for path in RunDirectory(tmp_path / "run").complete_checkpoints()}
    assert names == {"step_3", "step_6", "step_7"}


def test_damaged_images_are_skipped_and_listed_or_fatal(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path)
    (tmp_path / "images" / "04.png").write_bytes(b"\x89PNG nothing")
    train(recipe)
    train(recipe.model_copy(update={"phases": [recipe.phases[0].model_copy(update={"steps": 6})]}))
    listed = (tmp_path / "run" / "damaged.txt").read_text().splitlines()
    assert len(listed) == 1
    assert "04.png" in listed[0]
    sources = {"sources": [{"path": str(tmp_path / "images")}], "damaged": "fail"}
    for workers in (0, 1):
        fatal = recipe_for(tmp_path, run_dir=str(tmp_path / f"f{workers}"), data=sources | {"num_workers": workers})
        with pytest.raises(DataError, match=r"^[^\n]*04.png[^\n]*$"):
            train(fatal)


@pytest.mark.parametrize("content", [None, b"not an image"])
def test_datasets_without_good_images_are_refused(content: bytes | None, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", count=2)
    recipe = recipe_for(tmp_path)
    for path in folder.iterdir():
        path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"no image|none of the 2 images can be decoded"):
        train(recipe)


def test_second_signal_acts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcae_core.training.loop import Loop

    def impatient(self, batch, meter):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Loop, "_accumulate", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(tmp_path))


def test_a_disk_that_is_gone_is_told_by_workers_too(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, data={"sources": [{"path": str(tmp_path / "images")}], "num_workers": 1})
    read = DecodedOnDemand.pixels

    def gone(self, index):
        shutil.rmtree(tmp_path / "images", ignore_errors=True)
        return read(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodedOnDemand, "pixels", gone)
        with pytest.raises(SourceLostError, match=r"^[^\n]*still mounted"):
            train(recipe)


@pytest.mark.parametrize("after", [0, 9])
def test_a_disk_that_goes_in_mid_training_stops_the_run_and_nothing_is_lost(after: int, tmp_path: Path) -> None:
    train(recipe_for(tmp_path, phase(steps=6), run_dir=str(tmp_path / "whole")))
    recipe = recipe_for(tmp_path, phase(steps=6), checkpoints={"every": 100})
    read, count = DecodedOnDemand.pixels, 0

    def unplug(self, index):
        nonlocal count
        count += 1
        if count == after + 1:
            (tmp_path / "images").rename(tmp_path / "away")
        return read(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodedOnDemand, "pixels", unplug)
        with pytest.raises(SourceLostError, match="still mounted"):
            train(recipe)
    (tmp_path / "away").rename(tmp_path / "images")
    assert (RunDirectory(tmp_path / "run").latest() is not None) == (after > 0)
    train(recipe)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_an_autoencoder_that_collapses_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcae_core.checkpoints import load_autoencoder
    from dcae_core.models.autoencoder import Autoencoder

    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda *arguments: encode(*arguments) * 0)
    assert load_autoencoder(train(recipe_for(tmp_path))).scaling_factor == 1
