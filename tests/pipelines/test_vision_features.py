"""FD-DINOv2 and CMMD: what the networks are shown, and evaluations with small ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.checkpoints.vision_encoders import load_clip_vision, load_vision_encoder
from dcae_core.data.images import center_crop_adm
from dcae_core.errors import DataError
from dcae_core.metrics.feature_scores import clip_maximum_mean_discrepancy
from dcae_core.metrics.frechet import Gaussian, frechet_distance
from dcae_core.pipelines.evaluation.evaluate import evaluate
from dcae_core.pipelines.evaluation.scores import Evaluation
from dcae_core.pipelines.evaluation.vision_features import ClipMeasurement, DinoV2Measurement
from dcae_core.recipes.evaluate import EvaluateRecipe
from tests.vision_encoders import write_clip, write_vision_encoder


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    return {"dinov2": str(write_vision_encoder(tmp_path / "dino")), "clip": str(write_clip(tmp_path / "clip"))}


def write_images(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(1000 * seed + number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def crops_of(folder: Path) -> torch.Tensor:
    crops = [center_crop_adm(Image.open(file), 32) for file in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def measured(networks: dict[str, str], work: Path, **settings) -> Evaluation:
    recipe = EvaluateRecipe(metrics=["fd_dinov2", "cmmd"], resolution=32, batch_size=4, **networks, **settings)
    [evaluation] = evaluate(recipe, work=work)
    return evaluation


def test_dinov2_sees_pils_bicubic_at_224(tmp_path: Path, networks) -> None:
    network = load_vision_encoder(networks["dinov2"])
    pixels = crops_of(write_images(tmp_path / "images", 2, 0))
    shown = [
        np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC))
        for image in pixels
    ]
    x = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = network.class_features(2 * x - 1)
    features = DinoV2Measurement(network, "small")(pixels)["dinov2_features"]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_clip_embeddings_have_length_one(tmp_path: Path, networks) -> None:
    network = load_clip_vision(networks["clip"])
    measure = ClipMeasurement(network, "small")
    embeddings = measure(crops_of(write_images(tmp_path / "images", 2, 0)))["clip_embeddings"]
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    grey = torch.full((1, 3, 40, 24), 51, dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(torch.full((1, 3, 56, 56), 0.2))
    torch.testing.assert_close(measure(grey)["clip_embeddings"], expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_distances_of_two_folders_and_of_a_folder_to_itself(tmp_path: Path, networks, monkeypatch) -> None:
    monkeypatch.setenv("DCAE_CACHE", str(tmp_path / "cache"))
    a, b = write_images(tmp_path / "a", 24, 1), write_images(tmp_path / "b", 20, 2)
    own = measured(networks, tmp_path / "work", generated=str(a), reference=str(a)).measured()
    assert own == pytest.approx({"fd_dinov2": 0, "cmmd": 0}, abs=1e-6)
    across = measured(networks, tmp_path / "work", generated=str(a), reference=str(b))
    again = measured(networks, tmp_path / "work", generated=str(a), reference=str(b))  # the reference from the cache
    assert across.measured() == again.measured()

    sides = [crops_of(folder) for folder in (a, b)]
    dinov2 = DinoV2Measurement(load_vision_encoder(networks["dinov2"]), "")
    rows = [dinov2(side)["dinov2_features"].double().numpy() for side in sides]
    gaussians = [Gaussian(each.mean(0), np.cov(each, rowvar=False)) for each in rows]
    assert across.measured()["fd_dinov2"] == pytest.approx(frechet_distance(*gaussians), rel=1e-4)
    clip = ClipMeasurement(load_clip_vision(networks["clip"]), "")
    embeddings = [clip(side)["clip_embeddings"] for side in sides]
    assert across.measured()["cmmd"] == pytest.approx(clip_maximum_mean_discrepancy(*embeddings), rel=1e-3, abs=1e-6)
    assert "dino " in across.scores[0].origin()
    assert "clip " in across.scores[1].origin()


def test_statistics_alone_are_refused(tmp_path: Path, networks) -> None:
    np.savez(tmp_path / "ref.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    images = write_images(tmp_path / "a", 4, 1)
    with pytest.raises(DataError, match="holds statistics alone"):
        measured(networks, tmp_path / "work", generated=str(images), reference=str(tmp_path / "ref.npz"))


def test_cmmd_is_the_double_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator).double(), dim=1) for n in (7, 5))

    def mean_kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(np.mean([np.exp(-((p - q) ** 2).sum().item() / 200) for p in x for q in y]))

    expected = 1000 * (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b))
    assert clip_maximum_mean_discrepancy(a, b) == pytest.approx(expected, rel=1e-9)
    assert clip_maximum_mean_discrepancy(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="different dimension: 8 and 3"):
        clip_maximum_mean_discrepancy(a, b[:, :3])
