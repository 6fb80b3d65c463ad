"""Run directories that something happened to: mended where nothing is lost, otherwise refused with a way out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.errors import CheckpointError, DcaeError
from dcae_core.training.loop import Loop
from dcae_core.training.run_directory import RunDirectory
from tests.training import small_diffusion
from tests.training.small_runs import phase, recipe_for, train

OFTEN = {"checkpoints": {"every": 2, "keep": 2}}
FILES = [
    "autoencoder.safetensors",
    "autoencoder.optimiser.pt",
    "ema.safetensors",
    "random.pt",
    "state.json",
    "checksums.json",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run that has two checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    train(recipe_for(folder, **OFTEN))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    recipe = tmp_path / "run/recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished), str(tmp_path)))
    return tmp_path


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_and_the_checkpoint_before_offered(name: str, folder: Path) -> None:
    flip_a_bit(folder / "run/checkpoints/step_4" / name)
    with pytest.raises(CheckpointError, match=r"cannot be continued from.*--resume .*step_2 goes on") as refused:
        train(recipe_for(folder, phase(steps=6), **OFTEN))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("model", ["run", "run/checkpoints/step_4"])
def test_as_a_model_its_weights_are_compared_and_the_checkpoint_before_offered(
    name: str, model: str, folder: Path
) -> None:
    shutil.rmtree(folder / "run/autoencoder")  # a run under way has no result yet
    load_autoencoder(folder / model)
    flip_a_bit(folder / "run/checkpoints/step_4" / name)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256 .*take the checkpoint before .*step_2"):
        load_autoencoder(folder / model)
    load_autoencoder(folder / "run/checkpoints/step_2")


def test_as_a_diffusion_model_its_weights_are_compared_too(tmp_path: Path) -> None:
    small_diffusion.write_latents(tmp_path / "latents")
    small_diffusion.train(small_diffusion.recipe_for(tmp_path, **{"checkpoints.every": 2}))
    flip_a_bit(tmp_path / "run/checkpoints/step_4/model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: .*take the checkpoint before .*step_2"):
        read_diffusion(locate_diffusion(tmp_path / "run"))


def test_the_checkpoint_before_is_gone_on_from(folder: Path) -> None:
    flip_a_bit(folder / "run/checkpoints/step_4/random.pt")
    train(recipe_for(folder, phase(steps=6), **OFTEN), resume=str(folder / "run/checkpoints/step_2"))
    assert RunDirectory(folder / "run").latest().name == "step_6"


def test_checkpoints_without_checksums_still_load(folder: Path) -> None:
    (folder / "run/checkpoints/step_4/checksums.json").unlink()
    train(recipe_for(folder, phase(steps=6), **OFTEN))
    assert RunDirectory(folder / "run").latest().name == "step_6"


def without_checksums(folder: Path) -> Path:
    checkpoint = folder / "run/checkpoints/step_4"
    (checkpoint / "checksums.json").unlink()
    return checkpoint


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(exp_avg=entry["exp_avg"].flatten()[:1]),
        lambda entry: entry.update(exp_avg_sq=entry["exp_avg_sq"][None]),
        lambda entry: entry.update(exp_avg=entry["exp_avg"].int()),
        lambda entry: entry.update(step=torch.zeros(3)),
        lambda entry: entry.update(more=torch.zeros(3)),
        lambda entry: entry.pop("exp_avg"),
        lambda entry: entry.update(step=4),
    ],
)
def test_an_optimiser_of_other_shapes_is_refused(change: Callable[[dict], object], folder: Path) -> None:
    path = without_checksums(folder) / "autoencoder.optimiser.pt"
    saved = torch.load(path, weights_only=True)
    change(saved["state"][0])
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=r"optimiser.pt cannot be continued from.*step_2"):
        train(recipe_for(folder, phase(steps=6), **OFTEN))


def test_changed_betas_and_weight_decay_are_applied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict] = []
    move = Loop._move

    def look(self, *step):
        groups[:] = self.task.networks["autoencoder"].optimiser.param_groups
        return move(self, *step)

    monkeypatch.setattr(Loop, "_move", look)
    changed = {"learning_rate": 1e-3, "weight_decay": 0.3, "warmup_steps": 1, "betas": [0.5, 0.6], "epsilon": 1e-4}
    train(recipe_for(folder, phase(steps=6, optimiser=changed), **OFTEN))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.5, 0.6) and group["eps"] == 1e-4 for group in groups)


def change_state(folder: Path, **values: object) -> None:
    path = without_checksums(folder) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_by_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "something").mkdir(parents=True)


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_bytes(b"\xff\xfe")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "recipe of bytes": lambda folder: (folder / "run/recipe.yaml").write_bytes(b"\xff\xfe\x00"),
    "recipe that is no YAML": lambda folder: (folder / "run/recipe.yaml").write_text("{a: [b"),
    "recipe that is a list": lambda folder: (folder / "run/recipe.yaml").write_text("[1, {a: 2}]"),
    "empty recipe": lambda folder: (folder / "run/recipe.yaml").write_text(""),
    "recipe with a bomb": lambda folder: (folder / "run/recipe.yaml").write_text("[" * 100_000),
    "recipe that is a directory": lambda folder: replace_by_directory(folder / "run/recipe.yaml"),
    "metrics of bytes": lambda folder: (folder / "run/metrics.jsonl").write_bytes(b"\xff\xfe\n"),
    "metrics that are no records": lambda folder: (folder / "run/metrics.jsonl").write_text('1\n[2]\n{"loss": 1}\n'),
    "metrics with text": lambda folder: (folder / "run/metrics.jsonl").write_text('{"step": "x", "loss": "y"}\n'),
    "metrics with a bomb": lambda folder: (folder / "run/metrics.jsonl").write_text("[" * 100_000),
    "metrics that are a directory": lambda folder: replace_by_directory(folder / "run/metrics.jsonl"),
    "damaged.txt of bytes": lambda folder: (folder / "run/damaged.txt").write_bytes(b"\xff\xfe\n"),
    "damaged.txt that is a directory": lambda folder: replace_by_directory(folder / "run/damaged.txt"),
    "latest of bytes": lambda folder: (folder / "run/checkpoints/latest").write_bytes(b"\xff\xfe\x00"),
    "latest that leads away": lambda folder: (folder / "run/checkpoints/latest").write_text("../../.."),
    "latest that is a directory": lambda folder: replace_by_directory(folder / "run/checkpoints/latest"),
    "chart that is a directory": lambda folder: replace_by_directory(folder / "run/metrics.png"),
    "lock that is a directory": lambda folder: replace_by_directory(folder / "run/.lock"),
    "checkpoints that are a file": lambda folder: replace_by_file(folder / "run/checkpoints"),
    "phases that are a file": lambda folder: replace_by_file(folder / "run/phases"),
    "result that is a file": lambda folder: replace_by_file(folder / "run/autoencoder"),
    "checkpoint that is a file": lambda folder: replace_by_file(folder / "run/checkpoints/step_6"),
    "state that is a list": lambda folder: (without_checksums(folder) / "state.json").write_text("[]"),
    "state with a bomb": lambda folder: (without_checksums(folder) / "state.json").write_text("[" * 100_000),
    "state that is a directory": lambda folder: replace_by_directory(without_checksums(folder) / "state.json"),
    "progress of text": lambda folder: change_state(folder, progress={"step": "4", "phase": 0, "phase_step": 4}),
    "negative progress": lambda folder: change_state(folder, progress={"step": -4, "phase": 0, "phase_step": -4}),
    "progress past the last phase": lambda folder: change_state(folder, progress={"step": 4, "phase": 7}),
    "averages of text": lambda folder: change_state(folder, ema_updates="many"),
    "no loss scale": lambda folder: change_state(folder, loss_scale=None),
    "checksums that are a list": lambda folder: (folder / "run/checkpoints/step_4/checksums.json").write_text("[]"),
    "averages of other weights": lambda folder: save_file(
        {"x": torch.zeros(3)}, without_checksums(folder) / "ema.safetensors"
    ),
    "random states that are a list": lambda folder: torch.save([1, 2], without_checksums(folder) / "random.pt"),
    "random states of other lengths": lambda folder: torch.save(
        {"cpu": torch.zeros(3, dtype=torch.uint8)}, without_checksums(folder) / "random.pt"
    ),
    "an optimiser that is a list": lambda folder: torch.save(
        [], without_checksums(folder) / "autoencoder.optimiser.pt"
    ),
    "an optimiser of more parameters": lambda folder: torch.save(
        {"state": {}, "param_groups": []}, without_checksums(folder) / "autoencoder.optimiser.pt"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_mended_or_refused_in_one_line(damage: str, folder: Path) -> None:
    DAMAGE[damage](folder)
    refused = go_on(folder)
    if refused is None:
        assert RunDirectory(folder / "run").latest().name == "step_6"
        assert not list((folder / "run/checkpoints").glob(".*"))
    else:
        assert refused.exit_code in (2, 3, 4)
        assert "\n" not in str(refused)
        assert str(folder / "run") in str(refused)
        assert "other settings" not in str(refused)
        assert re.search("--resume|remove it|move it|choose another", str(refused)), refused


def go_on(folder: Path) -> DcaeError | None:
    try:
        train(recipe_for(folder, phase(steps=6), **OFTEN))
    except DcaeError as refused:
        return refused
    return None


def test_the_next_start_clears_what_a_kill_between_two_renames_left(folder: Path) -> None:
    checkpoints = folder / "run/checkpoints"
    (checkpoints / "latest").write_text("step_2\n")
    shutil.copytree(checkpoints / "step_2", checkpoints / "step_1")
    with RunDirectory(folder / "run", keep=2).locked():
        assert (checkpoints / "latest").read_text() == "step_4\n"
        assert sorted(path.name for path in checkpoints.glob("step_*")) == ["step_2", "step_4"]
