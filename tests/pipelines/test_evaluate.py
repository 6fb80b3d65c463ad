"""Evaluations: each image once, the same number for any division of the work, stops that cost nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core import distributed
from dcae_core.checkpoints import save_autoencoder
from dcae_core.data.images import center_crop_adm, open_image
from dcae_core.errors import CheckpointError, DataError, UsageError
from dcae_core.metrics.frechet import Gaussian, frechet_distance
from dcae_core.metrics.inception import load_inception
from dcae_core.metrics.reconstruction import psnr
from dcae_core.pipelines.evaluation import parts
from dcae_core.pipelines.evaluation.evaluate import evaluate
from dcae_core.pipelines.evaluation.fid_reference import measure_reference
from dcae_core.pipelines.evaluation.parts import PartStore, divide
from dcae_core.pipelines.evaluation.report import write_report
from dcae_core.pipelines.evaluation.scores import Evaluation
from dcae_core.recipes.evaluate import EvaluateRecipe
from tests.metrics.cheap_inception import CheapExtractor
from tests.metrics.inception_weights import random_inception_state
from tests.small import small_autoencoder

NUM_IMAGES = 11  # no batch of 4 divides it


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth random images of several sizes, one of them damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), "RGB")
        coarse.resize((40 + number, 37), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "small"
    save_autoencoder(small_autoencoder(), directory)
    return directory


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(random_inception_state(), path)
    return path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> CheapExtractor:
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    monkeypatch.setattr("dcae_core.pipelines.evaluation.fid_reference.load_inception", lambda *_, **__: extractor)
    return extractor


@pytest.fixture
def recipe(photographs: Path, model: Path) -> Callable[..., EvaluateRecipe]:
    def make(**changes: object) -> EvaluateRecipe:
        base = {"images": str(photographs), "resolution": 32, "batch_size": 4, "metrics": ["psnr", "ssim"]}
        return EvaluateRecipe.model_validate({"autoencoder": {"model": str(model)}} | base | changes)

    return make


def run(recipe: EvaluateRecipe, work: Path, **options: object) -> Evaluation:
    (evaluation,) = evaluate(recipe, work=work, **options)
    assert list(work.iterdir()) == []  # finished parts are gone once the number is known
    return evaluation


def test_every_image_is_measured_once_by_the_published_rule(recipe, photographs: Path, tmp_path: Path) -> None:
    evaluation = run(recipe(), tmp_path)
    assert evaluation.num_images == NUM_IMAGES - 1
    assert evaluation.names == [f"{number:02d}.png" for number in range(NUM_IMAGES) if number != 5]
    assert len(evaluation.damaged) == 1
    assert "05.png is damaged" in evaluation.damaged[0]
    network = small_autoencoder()
    expected = []
    latents = []
    for name in evaluation.names:
        pixels = np.asarray(center_crop_adm(open_image(photographs / name), 32))
        original = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            latent = network.encode(original / 127.5 - 1)
            decoded = (network.decode(latent) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        latents.append(latent.double())
        expected.append(psnr(original, decoded).item())
    assert evaluation.values["psnr"] == pytest.approx(expected, rel=1e-4)
    assert evaluation.measured()["psnr"] == pytest.approx(np.mean(expected), rel=1e-4)
    stacked = torch.cat(latents)
    assert evaluation.latent is not None
    assert evaluation.latent.mean == pytest.approx(stacked.mean().item(), rel=1e-4)
    assert evaluation.latent.rms == pytest.approx(stacked.square().mean().sqrt().item(), rel=1e-4)
    assert evaluation.latent.channel_std == pytest.approx(stacked.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-3)


def test_rfid_is_the_frechet_distance_of_the_features(recipe, inception: Path, tmp_path: Path) -> None:
    settings = recipe(metrics=["psnr", "fid"], inception_weights=str(inception), num_images=3, batch_size=3)
    shown = run(settings, tmp_path, num_shown=1)  # the best, the median and the worst of three: all of them
    extractor = load_inception(inception)
    features = []
    for side in ("original", "reconstruction"):
        images = torch.stack([getattr(item, side) for item in sorted(shown.shown, key=lambda item: item.name)])
        features.append(extractor(images).features.double().numpy())
    a, b = (Gaussian(rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in features)
    score = shown.scores[1]
    assert score.value == pytest.approx(frechet_distance(b, a), rel=1e-5)
    assert score.inception_sha256 == extractor.sha256
    assert score.num_images == 3
    assert any("fewer than 2048 features" in line for line in shown.warnings)


def test_a_stopped_evaluation_goes_on_where_it_was(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(recipe(), tmp_path / "whole")
    calls = []
    measure = parts.ReconstructionMeasurement.__call__

    def stop_at_the_third(self: object, images: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, images)

    monkeypatch.setattr(parts.ReconstructionMeasurement, "__call__", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe(), work=tmp_path / "stopped")
    again = run(recipe(), tmp_path / "stopped")
    assert calls == [4, 4, 4, 4]  # two parts, the stop, then only the part that was missing
    assert again.values == whole.values
    assert again.to_dict() == whole.to_dict()


def test_any_number_of_processes_gives_the_same_numbers(
    recipe, cheap: CheapExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks one after the other, sharing the parts' directory as three processes do."""
    settings = recipe(metrics=["psnr", "fid"])
    alone = run(settings, tmp_path / "one")
    measured = []
    save = PartStore.save

    def note(self: PartStore, number: int, part: parts.Part) -> None:
        measured.append(number)
        save(self, number, part)

    monkeypatch.setattr(PartStore, "save", note)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(parts, "barrier", lambda: None)
    monkeypatch.setattr(parts, "broadcast_object", lambda value: [0, 1, 2])
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.broadcast_object", lambda value: value)
    for rank in (1, 2, 0):  # the main process adds up at the end
        monkeypatch.setenv("RANK", str(rank))
        assert distributed.rank() == rank
        result = evaluate(settings, work=tmp_path / "three")
        assert len(result) == (rank == 0)
    assert sorted(measured) == [0, 1, 2]
    assert result[0].to_dict() == alone.to_dict()


def test_parts_cover_every_image_once_whatever_the_numbers() -> None:
    for count in (1, 7, 64, 1000, 50_000):
        for batch_size in (1, 16, 48, 5000):
            ranges = divide(count, batch_size)
            assert [index for part in ranges for index in part] == list(range(count))
            assert all(len(part) % batch_size == 0 for part in ranges[:-1])
    assert len(divide(50_000, 16)) >= 64
    assert max(len(part) for part in divide(1_300_000, 16)) <= 1024


def test_a_damaged_part_is_measured_again(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(recipe(), tmp_path / "whole")
    monkeypatch.setattr(PartStore, "remove", lambda self: None)
    evaluate(recipe(), work=tmp_path / "work")
    (part,) = (tmp_path / "work").glob("*/part_000001.safetensors")
    part.write_bytes(part.read_bytes()[:100])
    (again,) = evaluate(recipe(), work=tmp_path / "work")
    assert again.to_dict() == whole.to_dict()


def test_changed_images_are_another_evaluation(recipe, photographs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(PartStore, "remove", lambda self: None)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("00.png", "01.png"):
        (folder / name).write_bytes((photographs / name).read_bytes())
    (first,) = evaluate(recipe(images=str(folder)), work=tmp_path / "work")
    (folder / "00.png").write_bytes((photographs / "02.png").read_bytes())
    (second,) = evaluate(recipe(images=str(folder)), work=tmp_path / "work")
    assert first.values["psnr"][0] != second.values["psnr"][0]
    assert first.values["psnr"][1] == second.values["psnr"][1]


def test_an_image_named_twice_counts_once(recipe, photographs: Path, tmp_path: Path) -> None:
    listing = tmp_path / "images.txt"
    listing.write_text("".join(f"{photographs / name}\n" for name in ("00.png", "01.png", "00.png")))
    evaluation = run(recipe(images=str(listing)), tmp_path / "work")
    assert evaluation.num_images == 2
    assert any("1 images are named more than once" in line for line in evaluation.warnings)


def test_generated_images_against_a_reference_of_themselves_are_at_distance_zero(
    photographs: Path, cheap: CheapExtractor, tmp_path: Path
) -> None:
    reference = measure_reference([str(photographs)], 32, batch_size=4, work=tmp_path / "a")
    assert reference is not None
    assert reference.description["num_images"] == NUM_IMAGES - 1
    assert reference.description["num_damaged"] == 1
    path = tmp_path / "ref.npz"
    np.savez(path, mu=reference.gaussian.mean, sigma=reference.gaussian.covariance)
    recipe = EvaluateRecipe(
        generated=str(photographs),
        resolution=32,
        metrics=["fid", "is"],
        reference=str(path),
        batch_size=4,
    )
    evaluation = run(recipe, tmp_path / "b")
    assert evaluation.measured()["fid"] == pytest.approx(0, abs=1e-6 * np.trace(reference.gaussian.covariance))
    assert evaluation.measured()["is"] >= 1
    assert evaluation.scores[0].reference_sha256 is not None


def test_sfid_of_images_against_files_of_their_own_spatial_statistics(
    photographs: Path, cheap: CheapExtractor, tmp_path: Path
) -> None:
    """Zero against a file that holds them, by the rule of such files; the same against the images themselves."""
    names = [f"{number:02d}.png" for number in range(NUM_IMAGES) if number != 5]
    images = np.stack([np.asarray(center_crop_adm(open_image(photographs / name), 32)) for name in names])
    output = cheap(torch.from_numpy(images).permute(0, 3, 1, 2), resize="tensorflow")
    pooled, spatial = output.features.double().numpy(), output.spatial.double().numpy()
    statistics = {
        "mu": pooled.mean(0), "sigma": np.cov(pooled, rowvar=False),
        "mu_s": spatial.mean(0), "sigma_s": np.cov(spatial, rowvar=False),
    }  # fmt: skip
    np.savez(tmp_path / "adm.npz", **statistics)
    np.savez(tmp_path / "pooled.npz", mu=statistics["mu"], sigma=statistics["sigma"])
    np.savez(tmp_path / "other.npz", **statistics | {"mu_s": np.zeros(3), "sigma_s": np.eye(3)})

    def evaluated(reference: Path, **changes):
        recipe = EvaluateRecipe(
            generated=str(photographs), resolution=32, metrics=["fid", "sfid"], reference=str(reference), batch_size=4
        ).model_copy(update=changes)
        return run(recipe, tmp_path / "work")

    against_file = evaluated(tmp_path / "adm.npz")
    assert against_file.measured()["fid"] == pytest.approx(0, abs=1e-6 * np.trace(statistics["sigma"]))
    assert against_file.measured()["sfid"] == pytest.approx(0, abs=1e-6 * np.trace(statistics["sigma_s"]))
    assert "TensorFlow 1" in against_file.scores[1].origin()
    assert evaluated(tmp_path / "adm.npz", resize="half_pixel").measured()["sfid"] > 0.01
    assert evaluated(photographs).measured()["sfid"] == pytest.approx(0, abs=1e-6 * np.trace(statistics["sigma_s"]))
    with pytest.raises(DataError, match="no spatial statistics"):
        evaluated(tmp_path / "pooled.npz")
    with pytest.raises(DataError, match="3 spatial features, expected 2023"):
        evaluated(tmp_path / "other.npz")


def test_precision_and_recall_against_the_images_of_an_adm_batch(
    photographs: Path, cheap: CheapExtractor, tmp_path: Path
) -> None:
    names = [f"{number:02d}.png" for number in range(NUM_IMAGES) if number != 5]
    images = np.stack([np.asarray(center_crop_adm(open_image(photographs / name), 32)) for name in names])
    path = tmp_path / "adm.npz"
    np.savez(path, images, mu=np.zeros(2048), sigma=np.eye(2048))
    recipe = EvaluateRecipe(
        generated=str(photographs),
        resolution=32,
        metrics=["precision_recall"],
        reference=str(path),
        batch_size=4,
    )
    assert run(recipe, tmp_path / "work").measured() == {"precision": 1.0, "recall": 1.0}
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(DataError, match="holds statistics alone"):
        evaluate(recipe, work=tmp_path / "work")


def test_bad_input_gets_one_line(recipe, photographs: Path, cheap: CheapExtractor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"images of 30x30 do not fit a network of stride 4.*such as 28"):
        evaluate(recipe(resolution=30), work=tmp_path)
    with pytest.raises(DataError, match=r"images of different sizes: .*00\.png is 40x37, .*01\.png 41x37; give --res"):
        evaluate(recipe(resolution=None), work=tmp_path)
    with pytest.raises(DataError, match=r"05\.png is damaged"):
        evaluate(recipe(damaged="fail"), work=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        evaluate(recipe(images=str(empty)), work=tmp_path)
    (empty / "a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not one of 1 images can be decoded"):
        evaluate(recipe(images=str(empty)), work=tmp_path)
    one = recipe(images=str(photographs / "00.png"), metrics=["fid"])
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        evaluate(one, work=tmp_path)
    other = tmp_path / "other.npz"
    np.savez(other, mu=np.zeros(768), sigma=np.eye(768))
    with pytest.raises(DataError, match="statistics of 768 features, expected 2048"):
        evaluate(recipe(metrics=["fid"], reference=str(other)), work=tmp_path)


def test_a_network_whose_outputs_overflow_is_told(recipe, tmp_path: Path) -> None:
    broken = small_autoencoder()
    with torch.no_grad():
        next(broken.decoder.head.parameters()).fill_(3e38)
    save_autoencoder(broken, tmp_path / "broken")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        evaluate(recipe(autoencoder={"model": str(tmp_path / "broken")}), work=tmp_path / "work")


def test_features_that_are_nan_are_told(recipe, cheap: CheapExtractor, tmp_path: Path) -> None:
    cheap._features[0, 0] = torch.nan
    with pytest.raises(DataError, match="features that are not finite numbers"):
        evaluate(recipe(metrics=["fid"]), work=tmp_path)


def test_a_reference_of_other_weights_is_told(recipe, cheap: CheapExtractor, tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048), inception_sha256=np.array("0" * 64))
    evaluation = run(recipe(metrics=["fid"], reference=str(path)), tmp_path / "work")
    assert any("made with other Inception weights (00000000...)" in line for line in evaluation.warnings)
    assert json.loads(json.dumps(evaluation.to_dict()))["scores"]["fid"]["reference"] == "ref.npz"


def test_an_image_that_comes_back_unchanged_breaks_nothing(
    recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchanged(self: object, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, torch.zeros(len(images), 8, 8, 8)

    monkeypatch.setattr(parts.ReconstructionMeasurement, "reconstruct", unchanged)
    evaluation = run(recipe(), tmp_path / "work", num_shown=3)
    assert evaluation.measured()["psnr"] == float("inf")
    assert evaluation.measured()["ssim"] == pytest.approx(1)
    assert json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))["scores"]["psnr"]["value"] is None
    assert "inf" in write_report(tmp_path / "report", [evaluation], {}).read_text()
