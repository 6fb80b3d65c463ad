"""The main roads from photographs to figures, as the documentation has them, on tiny settings: none has a stop."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcae_core.checkpoints import load_autoencoder
from dcae_core.data.latents import LatentDataset
from dcae_core.weights import fingerprint
from tests.metrics.cheap_inception import CheapExtractor

# What docs/roads.md types, made short: fewer steps of smaller crops.
SHORT = ("--set", "phases.full.steps=2", "--set", "phases.full.batch_size=2", "--set", "phases.full.resolution=32")
SHORT += ("--set", "phases.full.optimiser.warmup_steps=1", "--set", "latent_statistics_images=2")
SHORT += ("--set", "data.num_workers=0", "--device", "cpu")
SHORT_DIFFUSION = ("--set", "steps=2", "--set", "optimiser.warmup_steps=1", "--set", "batch_size=4")
SHORT_DIFFUSION += ("--set", "sampling.num_steps=2", "--set", "sampling.num_images=2", "--device", "cpu")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photographs in two classes under `photos`, and a cache of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(6):
        folder = tmp_path / "photos" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.load_inception", lambda *_, **__: extractor)


def assert_refused(run, *words: str) -> None:
    """A training that had already said what it found."""
    assert run.exit_code == 3, run.stderr
    for word in words:
        assert word in run.stderr.splitlines()[-1]


def finetune(dcae, run_dir: str, *changes: str):
    own = ("--set", f"run_dir={run_dir}", "--set", "data.sources.0.path=photos")
    return dcae("train-ae", "finetune-embedded", *own, *SHORT, *changes)


def test_photographs_to_a_fine_tuned_decoder_to_reconstructions(dcae, workplace: Path) -> None:
    finetune(dcae, "runs/mine", "--set", "phases.full.train=[decoder]").assert_succeeds()
    command = ("reconstruct", "photos/cats/0.png", "--model")
    names = {}
    for model in ("runs/mine", "runs/mine/autoencoder", "runs/mine/checkpoints/step_2", "runs/mine/phases/full"):
        run = dcae(*command, model, "-o", "out", "--json")
        run.assert_succeeds()
        (result,) = json.loads(run.stdout)["results"]
        names[model] = result["model"]
    assert names == {
        "runs/mine": "mine",
        "runs/mine/autoencoder": "mine",
        "runs/mine/checkpoints/step_2": "mine-step_2",
        "runs/mine/phases/full": "mine-full",
    }
    side_by_side = dcae(*command, "runs/mine", "--model", "dc-ae-f32c32-tiny-1.0", "-o", "both", "--json")
    side_by_side.assert_succeeds()
    assert (workplace / "both" / "0.mine.recon.png").is_file()


def test_photographs_to_a_fine_tuned_autoencoder_latents_diffusion_samples_and_figures(
    dcae, workplace: Path, cheap
) -> None:
    finetune(dcae, "runs/mine").assert_succeeds()
    encode = ("encode-dataset", "--images", "photos", "--resolution", 64, "--model", "runs/mine", "--device", "cpu")
    dcae(*encode, "--out", "latents").assert_succeeds()
    assert LatentDataset("latents").manifest.encoder.name == "mine"
    train = ("train-diffusion", "tiny", "--set", "latents=latents", "--set", "run_dir=runs/images", *SHORT_DIFFUSION)
    assert_refused(dcae(*train), "autoencoder: DIR", "mine")
    dcae(*train, "--set", "autoencoder=runs/mine").assert_succeeds()
    sample = ("sample", "--model", "runs/images", "--steps", 2, "--sampler", "euler", "-o", "samples")
    dcae(*sample, "--classes", "cats,dogs,dogs", "--cfg", 1.5).assert_succeeds()
    record = json.loads((workplace / "samples" / "sample.json").read_text())
    assert (record["model"], record["autoencoder"]) == ("images-step_2", "mine")

    dcae("fid-ref", "--images", "photos", "--resolution", 64, "--out", "photos.npz").assert_succeeds()
    for reference in ("photos.npz", None):
        metric = ("--fid", "--ref", reference) if reference else ("--frechet", "--ref", "photos")
        run = dcae("eval", "--generated", "samples", *metric, "--json")
        run.assert_succeeds()
        assert json.loads(run.stdout)["num_images"] == 3
    run = dcae("eval", "--generated", "samples", "--frechet", "--ref", "photos")
    run.assert_succeeds()
    assert "FID" not in run.stdout + run.stderr
    assert "the Fréchet distance is of 3 images from 6 only" in run.stderr


def test_a_flat_folder_to_an_unconditional_model_to_samples(dcae, workplace: Path) -> None:
    (workplace / "flat").mkdir()
    for file in (workplace / "photos").rglob("*.png"):
        file.rename(workplace / "flat" / file.name)
    encode = ("encode-dataset", "--images", "flat", "--resolution", 64, "--out", "latents", "--device", "cpu")
    dcae(*encode).assert_succeeds()
    train = ("train-diffusion", "tiny", "--set", "latents=latents", "--set", "run_dir=runs/flat", *SHORT_DIFFUSION)
    dcae(*train).assert_succeeds()
    dcae("sample", "--model", "runs/flat", "--num", 3, "--steps", 2, "--sampler", "euler").assert_succeeds()
    assert {file.name for file in (workplace / "samples").glob("0*")} == {"0000.png", "0001.png", "0002.png"}


def test_a_grid_is_no_sample_and_an_unfinished_run_is_told(dcae, workplace: Path, cheap) -> None:
    dcae("encode-dataset", "--images", "photos", "--resolution", 64, "--out", "latents").assert_succeeds()
    train = ("train-diffusion", "tiny", "--set", "latents=latents", "--set", "run_dir=run", *SHORT_DIFFUSION)
    dcae(*train).assert_succeeds()
    sample = ("sample", "--model", "run", "--num", 4, "--steps", 1, "--sampler", "euler", "--save-latents")
    dcae(*sample, "-o", "samples").assert_succeeds()
    for command in (("eval", "--generated", "samples", "--fid", "--ref", "r.npz"), ("fid-ref", "--images", "samples")):
        if command[0] == "eval":
            dcae("fid-ref", "--images", "photos", "--out", "r.npz").assert_succeeds()
        run = dcae(*command, *(() if command[0] == "eval" else ("--out", "s.npz")), "--json")
        run.assert_succeeds()
        assert json.loads(run.stdout)["num_images"] == 4
    (workplace / "samples" / "0002_c0.png").unlink(missing_ok=True)
    (workplace / "samples" / "0002_c1.png").unlink(missing_ok=True)
    dcae("eval", "--generated", "samples", "--fid", "--ref", "r.npz").assert_fails(3, "sample 2", "dcae sample")


def test_a_decoder_that_is_fine_tuned_keeps_the_latents(dcae, workplace: Path) -> None:
    embedded = load_autoencoder(prepare=False)
    decoder_only = ("--set", "phases.full.train=[decoder]")
    finetune(dcae, "runs/mine", *decoder_only).assert_succeeds()
    mine = load_autoencoder("runs/mine", prepare=False)
    assert fingerprint(mine.encoder) == fingerprint(embedded.encoder)
    assert fingerprint(mine) != fingerprint(embedded)
    assert mine.scaling_factor == embedded.scaling_factor
    assert load_autoencoder("runs/mine/phases/full").scaling_factor == embedded.scaling_factor
    assert load_autoencoder("runs/mine/checkpoints/step_2").scaling_factor == embedded.scaling_factor

    dcae("encode-dataset", "--images", "photos", "--resolution", 64, "--out", "latents").assert_succeeds()
    train = ("train-diffusion", "tiny", "--set", "latents=latents", *SHORT_DIFFUSION)
    dcae(*train, "--set", "run_dir=runs/b", "--set", "autoencoder=runs/mine").assert_succeeds()
    dcae(*train, "--set", "run_dir=runs/a").assert_succeeds()
    sample = ("sample", "--num", 1, "--steps", 1, "--sampler", "euler", "--model")
    for name, model, options in (("a", "runs/a", ("--autoencoder", "runs/mine")), ("b", "runs/b", ())):
        run = dcae(*sample, model, *options, "-o", name)
        run.assert_succeeds()
        assert "warning" not in run.stderr

    dcae("reconstruct", "photos/cats/0.png", "--save-latents", "-o", "out").assert_succeeds()
    decode = ("decode", "out/0.latent.safetensors", "-o", "decoded", "--model")
    dcae(*decode, "runs/mine").assert_succeeds()

    finetune(dcae, "runs/other").assert_succeeds()
    dcae(*decode, "runs/other").assert_fails(3, "has other weights", "leave --model out")
    assert load_autoencoder("runs/other").scaling_factor != embedded.scaling_factor
    recipe = (*train, "--set", "run_dir=runs/c", "--set", "autoencoder=runs/other")
    assert_refused(dcae(*recipe), "autoencoder: DIR", "encode again")


def test_a_run_that_is_not_finished_gives_its_newest_checkpoint(dcae, workplace: Path) -> None:
    finetune(dcae, "runs/mine").assert_succeeds()
    converted = {}
    for model in ("runs/mine", "runs/mine/checkpoints/step_2"):
        converted[model] = Path(model.replace("/", "-"))
        dcae("convert", model, "--to", "dcae", "-o", converted[model]).assert_succeeds()
    first, second = (fingerprint(load_autoencoder(place, prepare=False)) for place in converted.values())
    assert first == second  # the averaged weights
    for name in ("autoencoder", "phases"):
        (workplace / "runs" / "mine" / name).rename(workplace / name)
    dcae("convert", "runs/mine", "--to", "dcae", "-o", "third").assert_succeeds()
    assert fingerprint(load_autoencoder("third", prepare=False)) == first
    dcae("eval", "--model", "runs/mine", "--images", "photos", "--resolution", 64, "--psnr").assert_succeeds()


def test_the_shipped_recipe_needs_no_download() -> None:
    from dcae_core.recipes.loading import load_recipe
    from dcae_core.recipes.train_ae import TrainAutoencoderRecipe

    recipe = load_recipe("finetune-embedded", TrainAutoencoderRecipe)
    assert recipe.network.weights == "dc-ae-f32c32-tiny-1.0"
    assert all(phase.losses.lpips == 0 for phase in recipe.phases)
    assert recipe.validation is None or not (recipe.validation.lpips or recipe.validation.fid)
