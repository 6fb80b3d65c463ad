"""`train-diffusion`: what it computes, and that nothing but the recipe decides the result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcae_core.checkpoints.denoisers import locate_diffusion
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.diffusion.objectives import OBJECTIVES
from dcae_core.errors import CheckpointError, DataError, RecipeError, UsageError
from dcae_core.training.checks import LatentKind, denoiser_config_of, normalisation_of, objective_of, open_latents
from dcae_core.training.optimisers import ema_decay, learning_rate_at
from dcae_core.training.run import RunOptions
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.train_diffusion import (
    DiffusionBatch,
    DiffusionTask,
    TrainingNoise,
    train_diffusion,
)

from ..golden import GOLDEN
from ..processes import one_thread, run_in_group
from .small_diffusion import CPU, recipe_for, train, write_latents

# Float32 sums in another order, and Adam's first steps divide by gradients of nearly 0.
TOLERANCE = 2e-4


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunDirectory(run).latest()
    names = ("model", "ema")
    return {
        f"{name}.{key}": value for name in names for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def largest_difference(a: Path, b: Path) -> float:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


def test_published_learning_rate_and_average():
    golden = json.loads((GOLDEN / "misc.json").read_text())
    for step, rate in golden["lr_constant_with_warmup_5000_lr1e-4"].items():
        used = learning_rate_at(int(step), peak=1e-4, warmup_steps=5000, schedule="constant", total_steps=500_000)
        assert used == pytest.approx(rate, rel=1e-6)
    trace = golden["ema_0.9999_warmup2000_of_sin(step/50)"]
    average = 0.0
    for step in range(1, 3001):
        decay = ema_decay(step, 0.9999, 2000)
        average = decay * average + (1 - decay) * float(np.sin(step / 50))
        if str(step) in trace:
            assert average == pytest.approx(trace[str(step)], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("objective", "architecture"), [("epsilon", "uvit"), ("epsilon_variance", "dit")])
@one_thread
def test_stopped_and_continued_is_the_same_bit_for_bit(tmp_path, objective, architecture):
    write_latents(tmp_path / "latents")
    settings = {"objective": objective, "network.architecture": architecture, "accumulation": 2, "steps": 5}
    train(recipe_for(tmp_path, run_dir=str(tmp_path / "whole"), **settings))
    for steps in (2, 3, 5):
        train(recipe_for(tmp_path, run_dir=str(tmp_path / "parts"), **(settings | {"steps": steps})))
    assert largest_difference(tmp_path / "whole", tmp_path / "parts") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(set(losses(tmp_path / "whole"))) == 5


@one_thread
def test_parts_processes_and_shards_of_a_batch_make_the_same_step(tmp_path):
    write_latents(tmp_path / "latents")

    def run(name: str, **changes) -> None:
        train(recipe_for(tmp_path, run_dir=str(tmp_path / name), augmentation={"channels": [2, 4]}, **changes))

    run("one")
    run("parts", accumulation=3)
    run("uneven", accumulation=4)  # parts of 2, 1, 2 and 1
    run_in_group(2, lambda: run("copies"))
    run_in_group(2, lambda: run("uneven-copies", accumulation=2))
    run_in_group(2, lambda: run("shards", **{"execution.sharding": "fsdp"}))
    lean = {"execution.sharding": "fsdp", "execution.activation_checkpointing": True}
    run_in_group(2, lambda: run("lean-shards", **lean))
    for name in ("parts", "uneven", "copies", "uneven-copies", "shards", "lean-shards"):
        assert largest_difference(tmp_path / "one", tmp_path / name) < TOLERANCE
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@one_thread
def test_window_shuffling_trains_and_goes_on_in_another_number_of_processes(tmp_path):
    write_latents(tmp_path / "latents")
    window = {"dataset": {"shuffle": "window", "window": 1, "lanes": 2}}
    train(recipe_for(tmp_path, run_dir=str(tmp_path / "one"), **window))
    run_in_group(2, lambda: train(recipe_for(tmp_path, run_dir=str(tmp_path / "moved"), steps=2, **window)))
    train(recipe_for(tmp_path, run_dir=str(tmp_path / "moved"), **window))
    assert largest_difference(tmp_path / "one", tmp_path / "moved") < TOLERANCE


def test_chance_belongs_to_positions():
    chance = TrainingNoise(5, OBJECTIVES["velocity"], 0.5, 4, (2, 6))

    def draw(positions: range) -> DiffusionBatch:
        latents = torch.zeros(len(positions), 8, 4, 4)
        items = np.asarray(positions)
        return chance.complete(LatentBatch(latents, torch.ones(len(positions)).long(), items, items, 0.0))

    whole, part = draw(range(400)), draw(range(100, 130))
    for name in ("noise", "times", "labels", "channels"):
        assert torch.equal(getattr(whole, name)[100:130], getattr(part, name))
    assert whole.noise.mean().abs() < 0.02
    assert whole.noise.std() == pytest.approx(1, abs=0.02)
    assert (whole.labels == 4).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (whole.channels == 2).float().mean() == pytest.approx(0.5, abs=0.1)
    assert whole.times.mean() == pytest.approx(0.5, abs=0.05)


class _Linear(torch.nn.Module):
    """Predicts a multiple of its input, whatever the time and class."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, y):
        return self.factor * x


def test_the_second_loss_sees_leading_channels_only(tmp_path):
    write_latents(tmp_path / "latents")
    recipe = recipe_for(tmp_path, augmentation={"channels": [2], "weight": 0.5})
    task = DiffusionTask(_Linear(), recipe, scaling_factor=0.5, validation=None)
    chance = TrainingNoise(0, OBJECTIVES["velocity"], 0.0, 4, (2,))
    items = np.arange(3)
    batch = chance.complete(LatentBatch(torch.randn(3, 8, 4, 4), torch.zeros(3).long(), items, items, 0.0))
    (loss,) = task.losses(batch, 0)

    data, noise, t = 0.5 * batch.latents, batch.noise, batch.times[:, None, None, None]
    error = 0.3 * (t * data + (1 - t) * noise) - (data - noise)
    expected = error.square().mean() + 0.5 * error[:, :2].square().mean()
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(loss.terms) == {"loss", "denoising", "leading_channels"}


def test_channels_are_normalised_by_the_manifests_statistics(tmp_path):
    """The network sees channels of mean 0 and deviation 1; `sample` undoes that without being asked."""
    scale, shift = torch.linspace(0.5, 4, 8)[:, None, None], torch.arange(8.0)[:, None, None]
    write_latents(tmp_path / "wide", scale=scale, shift=shift)
    recipe = recipe_for(tmp_path, latents=str(tmp_path / "wide"), normalisation="channel")
    dataset = open_latents(recipe)
    normalisation = normalisation_of(recipe, dataset)
    stored, _ = dataset.read(range(len(dataset)))
    seen = normalisation.apply(stored.float())
    assert seen.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(seen.var(dim=(0, 2, 3), correction=0), torch.ones(8), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalisation.undo(seen), stored.float(), rtol=1e-5, atol=1e-5)

    task = DiffusionTask(_Linear(), recipe, 0.5, None, normalisation)
    items = np.arange(3)
    noise = TrainingNoise(0, OBJECTIVES["velocity"], 0.0, 4)
    batch = noise.complete(LatentBatch(stored[:3], torch.zeros(3).long(), items, items, 0.0))
    (loss,) = task.losses(batch, 0)
    t = batch.times[:, None, None, None]
    error = 0.3 * (t * seen[:3] + (1 - t) * batch.noise) - (seen[:3] - batch.noise)
    assert loss.value.item() == pytest.approx(error.square().mean().item(), rel=1e-5)

    run = train(recipe)
    files = locate_diffusion(run)
    assert files.normalisation == normalisation
    with pytest.raises(UsageError, match=r"other settings .normalisation"):
        train(recipe_for(tmp_path, latents=str(tmp_path / "wide")))


@pytest.mark.parametrize(
    ("normalisation", "words"),
    [
        ({"mean": [0.0], "std": [1.0]}, "normalises 1 channels of latents with 8"),
        ({"mean": [0.0] * 8, "std": [1.0] * 7}, "8 channel means, but 7"),
        ({"mean": [0.0] * 8, "std": [0.0] * 8}, "channel 0 has a standard deviation of 0"),
        ({"mean": "x"}, "describes no diffusion model"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(tmp_path, normalisation, words):
    write_latents(tmp_path / "latents")
    run = train(recipe_for(tmp_path, normalisation="channel", steps=1))
    description = json.loads((run / "dcae.json").read_text())
    description["diffusion"]["normalisation"] = normalisation
    (run / "dcae.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=words):
        locate_diffusion(run)


def test_latents_with_a_constant_channel_cannot_be_normalised_by_channel(tmp_path):
    write_latents(tmp_path / "latents", scale=torch.tensor([1.0] * 7 + [0.0])[:, None, None])
    with pytest.raises(DataError, match="cannot be normalised by channel: channel 7 has a standard deviation of 0"):
        train(recipe_for(tmp_path, normalisation="channel"))


def test_times_and_norms_of_a_recipe_reach_the_training(tmp_path):
    write_latents(tmp_path / "latents")
    times = {"distribution": "logit_normal", "mean": 1.0, "scale": 0.5, "shift_base": 32}
    recipe = recipe_for(tmp_path, times=times, **{"network.qk_norm": True})
    config = denoiser_config_of(recipe, LatentKind((8, 4, 4), 4))
    drawn = objective_of(recipe, config).draw_times(20_000, torch.Generator().manual_seed(0))
    logits = torch.log((1 - drawn) / drawn)
    assert logits.mean().item() == pytest.approx(1.0 + 0.5 * np.log(128 / 32), abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)
    assert "in_blocks.0.attn.q_norm.weight" in load_file(RunDirectory(train(recipe)).latest() / "model.safetensors")


def test_all_faults_of_a_recipe_come_in_one_report(tmp_path):
    write_latents(tmp_path / "latents")
    with pytest.raises(RecipeError) as caught:
        recipe_for(
            tmp_path,
            **{
                "network.num_classes": 1000,
                "resolution": 512,
                "batch_size": 21,
                "accumulation": 22,
                "augmentation": {"channels": [9]},
                "sampling": {"classes": [4], "every": 7, "fid": {"reference": "nowhere.npz", "every": 10}},
                "network.hiden_size": 4,
            },
        )
    for words in (
        "network.num_classes: 1000, but the latents have 4 classes",
        "resolution: 512, but the latents are of images of 16 px",
        "batch_size: 21 is more than the 20 latents there are",
        "accumulation: a batch of 21 cannot fill 22 parts",
        "augmentation.channels: 9 is more than the 8 there are",
        "sampling.classes: class 4 does not exist",
        "sampling.fid.every: 10 is no multiple of sampling.every, 7",
        "nowhere.npz: there is no such reference file",
        "did you mean 'hidden_size'",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network.num_heads": 3}, "must be a multiple"),
        ({"objective": "epsilon_variance", "augmentation": {"channels": [2]}}, "augmentation: works with"),
        ({"sampling": {"sampler": "ddpm"}}, "sampling: "),
        ({"dataset": {"shuffle": "window", "lanes": 6}}, "dataset.lanes: 6 is more than the 3 shards"),
        (
            {"objective": "epsilon", "times": {"distribution": "logit_normal"}},
            "times: belong to the objective velocity",
        ),
        ({"times": {"mean": 1.0}}, "times: mean and scale belong to"),
        ({"times": {"shift": 2.0, "shift_base": 4096}}, "times: give shift or shift_base, not both"),
        ({"times": {"shift": 0.0}}, "times.shift: expected"),
        ({"times": {"scale": -1.0}}, "times.scale: expected"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma: weighs the objective epsilon, not velocity"),
        ({"objective": "epsilon", "min_snr_gamma": 0.0}, "min_snr_gamma: expected"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite: expected 'stop' or 'skip'"),
        ({"max_skips": 0}, "max_skips: expected"),
        ({"execution.tf32": "on"}, "execution.tf32: expected true or false"),
        ({"normalisation": "vector"}, "normalisation: expected 'scalar' or 'channel'"),
        ({"network.qk_norm": 1}, "network.qk_norm: expected true or false"),
        ({"optimiser.decay": "biases"}, "optimiser.decay: expected 'all' or 'matrices'"),
        ({"optimiser.schedule": "cosine", "optimiser.warmup_steps": 9}, "optimiser.warmup_steps"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, changes, words):
    write_latents(tmp_path / "latents")
    with pytest.raises(RecipeError, match=words.replace(".", r"\.")):
        recipe_for(tmp_path, **changes)


def test_missing_latents_are_missing_data(tmp_path):
    with pytest.raises(DataError, match=r"latents: nowhere/manifest\.json is missing"):
        recipe_for(tmp_path, latents="nowhere")


def test_latents_of_another_autoencoder_are_refused(tmp_path):
    write_latents(tmp_path / "latents")
    with pytest.raises(DataError, match=r"were made by dc-ae-f32c32-tiny-1\.0, not by dc-ae-f64c128"):
        train(recipe_for(tmp_path, autoencoder="dc-ae-f64c128-in-1.0"))


def test_damaged_latents_are_found_before_training(tmp_path):
    write_latents(tmp_path / "latents")
    shard = tmp_path / "latents" / "shard-000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-000001\.safetensors is damaged"):
        train(recipe_for(tmp_path))


def test_a_run_is_not_continued_on_other_latents_or_settings(tmp_path):
    write_latents(tmp_path / "latents")
    train(recipe_for(tmp_path, steps=1))
    with pytest.raises(UsageError, match=r"other settings .label_dropout"):
        train(recipe_for(tmp_path, label_dropout=0.5))
    write_latents(tmp_path / "others", 26)
    with pytest.raises(UsageError, match="holds a run on other latents"):
        train(recipe_for(tmp_path, latents=str(tmp_path / "others")))
    with pytest.raises(UsageError, match="already holds a run"):
        train_diffusion(recipe_for(tmp_path), RunOptions(CPU, resume="never"))


def test_a_run_that_goes_back_does_its_later_steps_again(tmp_path: Path) -> None:
    """Later checkpoints and records go: they are of other weights than the run has from now on."""
    write_latents(tmp_path / "latents")
    recipe = recipe_for(tmp_path, **{"checkpoints.every": 2})
    run = train(recipe)
    newest = RunDirectory(run).latest() / "model.safetensors"
    before, written = weights(run), newest.stat().st_mtime_ns
    train_diffusion(recipe, RunOptions(CPU, resume=str(run / "checkpoints" / "step_2")))
    assert newest.stat().st_mtime_ns > written
    for name, value in weights(run).items():
        assert torch.equal(value, before[name]), name
    assert [record["step"] for record in RunDirectory(run).read_metrics()] == [1, 2, 3, 4]


def test_latents_without_classes_train_and_sample_without_guidance_by_themselves(tmp_path: Path) -> None:
    write_latents(tmp_path / "latents", num_classes=0, shape=(32, 4, 4))
    sampling = {"every": 4, "num_images": 2, "guidance_scale": 1.5, "sampler": "euler", "num_steps": 2}
    train(recipe_for(tmp_path, **{"sampling": sampling}))
    assert (tmp_path / "run" / "samples" / "step_4.png").is_file()
