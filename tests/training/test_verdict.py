"""A loop that hears one step late whether a step counted, as on a GPU, does what one does that hears at once."""

from pathlib import Path

import pytest
import torch

from dcae_core.training.loop import DivergedError
from dcae_core.training.run import RunOptions
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.train_ae import train_autoencoder
from dcae_core.training.verdict import Verdict, step_unless
from tests.training.small_runs import assert_same, checkpoint_contents, phase, recipe_for, train
from tests.training.test_safety import Notes, make_infinite


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers that come when they are asked for; how many are awaited at each reading."""
    awaited: list[int] = []
    create = Verdict.__init__
    open_answers: list[Verdict] = []

    def send(self: Verdict, counts: torch.Tensor) -> None:
        create(self, counts)
        self.is_pending = True
        open_answers.append(self)

    def receive(self: Verdict) -> list[float]:
        awaited.append(len(open_answers))
        open_answers.remove(self)
        self.is_pending = False
        return self._counts.tolist()

    monkeypatch.setattr(Verdict, "__init__", send)
    monkeypatch.setattr(Verdict, "read", receive)
    return awaited


@pytest.mark.parametrize("settings", [{}, {"on_nonfinite": "skip"}])
def test_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request, settings: dict) -> None:
    """With a step that is not finite among them, where such a step is skipped."""
    last = []
    for name in ("at once", "late"):
        if name == "late":
            request.getfixturevalue("late")
        with monkeypatch.context() as patch:
            make_infinite(patch, {3} if settings else set())
            steps = phase(steps=6)
            recipe = recipe_for(tmp_path, steps, run_dir=str(tmp_path / name), checkpoints={"every": 4}, **settings)
            logger = Notes()
            train_autoencoder(recipe, RunOptions(torch.device("cpu")), logger)
        last.append(checkpoint_contents(RunDirectory(tmp_path / name).latest()))
        assert sum(line.startswith("skipped step 2 ") for line in logger.lines) == (1 if settings else 0)
    assert_same(*last)


def test_a_step_that_is_not_finite_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late) -> None:
    make_infinite(monkeypatch, {3})
    with pytest.raises(DivergedError, match=r"step 2 .*the loss .* is not finite.*\.png.*step_2;"):
        train(recipe_for(tmp_path, phase(steps=9), checkpoints={"every": 2}))
    contents = checkpoint_contents(RunDirectory(tmp_path / "run").latest())
    assert contents["state"]["progress"]["step"] == 2
    assert len(late) == 3


def test_the_answer_is_awaited_after_the_next_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late) -> None:
    from dcae_core.training.loop import Loop

    order: list[str] = []
    accumulate, settle = Loop._accumulate, Loop._settle

    def note_gradients(self, batch, meter):
        order.append("gradients")
        return accumulate(self, batch, meter)

    def note_answer(self):
        order.extend(["answer"] * (self._unsettled is not None))
        settle(self)

    monkeypatch.setattr(Loop, "_accumulate", note_gradients)
    monkeypatch.setattr(Loop, "_settle", note_answer)
    train(recipe_for(tmp_path, phase(steps=3), logging={"every": 9}, checkpoints={"every": 9}))
    assert order == ["gradients", "gradients", "answer", "gradients", "answer", "answer"]


def test_a_step_left_out_on_the_device_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for is_bad, expected in ((0.0, 1), (1.0, 1), (0.0, 2)):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), torch.nan if is_bad else 1.0)
        step_unless(torch.tensor(is_bad), optimiser)
        assert torch.equal(weight, before) == bool(is_bad)
        assert optimiser.state[weight]["step"] == expected
    assert weight.isfinite().all()
