"""Stop anywhere and continue: the same bits as without the stop."""

import signal
from pathlib import Path

import pytest

from dcae_core.training.loop import Loop, StoppedError
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.train_ae import AutoencoderTask
from tests.training.small_runs import GAN, assert_same, checkpoint_contents, losses_of, phase, recipe_for, train


def three_phases() -> list[dict]:
    gan = {"l1": 1.0, "ssim": 0.1, "adversarial": GAN | {"start_step": 1}}
    return [
        phase(steps=4, accumulation=2, latent_channels=[2, 4], batch_size=6),
        phase("latent_adaptation", steps=2, resolution=24),
        phase("local_refinement", steps=3, losses=gan),
    ]


def stop_after_parts(monkeypatch: pytest.MonkeyPatch, stops: set[int]) -> None:
    """Raise SIGTERM in the given parts of steps, counted over the whole run and its continuations."""
    counted = 0
    accumulate = Loop._accumulate

    def counting(self, batch, meter):
        nonlocal counted
        counted += 1
        if counted in stops:
            signal.raise_signal(signal.SIGTERM)
        return accumulate(self, batch, meter)

    monkeypatch.setattr(Loop, "_accumulate", counting)


def run_with_stops(recipe, stops: int) -> None:
    for _ in range(stops):
        with pytest.raises(StoppedError) as stopped:
            train(recipe)
        assert stopped.value.exit_code == 143
    train(recipe)


@pytest.mark.parametrize(
    "stops",
    [
        {1},  # the first batch, in the middle of a step
        {3},  # in mid-accumulation
        {4, 5},  # between steps, twice in a row
        {8},  # the last part of the first phase
        {9, 10},  # both steps of the second phase
        {11, 13},  # in the GAN phase
        {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
    ],
)
def test_stopping_leaves_no_trace(stops: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recipe_for(tmp_path, *three_phases(), run_dir=str(tmp_path / "whole"))
    train(whole)
    stop_after_parts(monkeypatch, stops)
    stopped = recipe_for(tmp_path, *three_phases(), run_dir=str(tmp_path / "stopped"))
    run_with_stops(stopped, len(stops))

    a, b = (RunDirectory(tmp_path / name).latest() for name in ("whole", "stopped"))
    assert_same(checkpoint_contents(a), checkpoint_contents(b))
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    for file in ("phases/full", "phases/latent_adaptation", "autoencoder"):
        for weights in (tmp_path / "whole" / file).glob("*.safetensors"):
            assert weights.read_bytes() == (tmp_path / "stopped" / file / weights.name).read_bytes()


def test_two_stops_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in the validation of what the run begins with, once in the first part of the first step."""
    validation = {"path": str(tmp_path / "images"), "resolution": 16, "num_images": 2, "every": 9}
    recipe_for(tmp_path)
    steps = phase(steps=2, accumulation=2)
    train(recipe_for(tmp_path, steps, run_dir=str(tmp_path / "whole"), validation=validation))
    recipe = recipe_for(tmp_path, steps, run_dir=str(tmp_path / "stopped"), validation=validation)
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTask, "validate", lambda self, step, stop: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(recipe)
    stop_after_parts(monkeypatch, {1})
    run_with_stops(recipe, 1)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")


def test_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    contents = []
    for workers in (0, 2):
        recipe = recipe_for(tmp_path, run_dir=str(tmp_path / str(workers)))
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_workers": workers})})
        train(recipe)
        contents.append(checkpoint_contents(RunDirectory(tmp_path / str(workers)).latest()))
    assert_same(*contents)


def test_stop_during_validation_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = {"path": str(tmp_path / "images"), "resolution": 16, "num_images": 3, "every": 2, "batch_size": 1}
    recipe_for(tmp_path)
    train(recipe_for(tmp_path, run_dir=str(tmp_path / "whole"), validation=validation))

    from dcae_core.training import validation as module

    psnr, calls = module.psnr, []

    def stopping(a, b):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return psnr(a, b)

    monkeypatch.setattr(module, "psnr", stopping)
    recipe = recipe_for(tmp_path, run_dir=str(tmp_path / "stopped"), validation=validation)
    with pytest.raises(StoppedError) as stopped:
        train(recipe)
    assert stopped.value.exit_code == 130
    train(recipe)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    assert sum("validation.psnr" in record for record in losses_of(tmp_path / "whole")) == 3
