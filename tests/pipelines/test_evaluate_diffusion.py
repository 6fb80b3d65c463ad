"""Evaluations of diffusion models: the published labels, and samples that no division of the work changes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dcae_core import load_diffusion
from dcae_core.metrics.frechet import Gaussian, frechet_distance
from dcae_core.pipelines.evaluation import plans
from dcae_core.pipelines.evaluation.evaluate import evaluate
from dcae_core.pipelines.evaluation.inputs import GeneratedSamples
from dcae_core.pipelines.generate import SampleSettings
from dcae_core.recipes.evaluate import EvaluateRecipe
from tests.diffusion_models import write_diffusion
from tests.golden import GOLDEN
from tests.metrics.cheap_inception import CheapExtractor

NUM = 11  # no batch of 4 divides it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion(tmp_path_factory.mktemp("models") / "epsilon", "epsilon")


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateRecipe:
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    rows = np.random.default_rng(0).standard_normal((30, 2048))
    np.savez(tmp_path / "ref.npz", mu=rows.mean(axis=0), sigma=np.cov(rows, rowvar=False))
    diffusion = {"model": str(model), "num": NUM, "guidance_scale": 1.5, "num_steps": 2}
    return EvaluateRecipe.model_validate(
        {"diffusion": diffusion, "metrics": ["fid", "is"], "reference": str(tmp_path / "ref.npz"), "batch_size": 4}
    )


def test_the_score_is_that_of_the_models_own_samples(recipe: EvaluateRecipe, model: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(recipe, work=tmp_path / "work", num_shown=1)
    assert evaluation.num_images == NUM
    pipeline = load_diffusion(model)
    labels = torch.randint(0, 10, (NUM,), generator=torch.Generator().manual_seed(0)).tolist()
    images = pipeline.generate(labels, 1.5, num_steps=2, batch_size=4).images
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    features = CheapExtractor()(batch).features.double().numpy()
    reference = np.load(tmp_path / "ref.npz")
    expected = frechet_distance(
        Gaussian(features.mean(axis=0), np.cov(features, rowvar=False)), Gaussian(reference["mu"], reference["sigma"])
    )
    assert evaluation.measured()["fid"] == pytest.approx(expected, rel=1e-9)
    assert evaluation.measured()["is"] >= 1
    assert evaluation.shown[0].name == f"00000_c{labels[0]}"
    assert torch.equal(evaluation.shown[0].original, batch[0])


def test_a_stopped_run_ends_with_the_same_numbers(
    recipe: EvaluateRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = evaluate(recipe, work=tmp_path / "whole")
    made: list[range] = []
    batches = GeneratedSamples.batches

    def stop_at_the_second(self: GeneratedSamples, ranges: list[range]):
        made.extend(ranges)
        if len(made) == 2:
            raise KeyboardInterrupt
        return batches(self, ranges)

    monkeypatch.setattr(GeneratedSamples, "batches", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, work=tmp_path / "stopped")
    (again,) = evaluate(recipe, work=tmp_path / "stopped")
    assert made == [range(4), range(4, 8), range(4, 8), range(8, 11)]
    assert again.to_dict() == whole.to_dict()


def at_scales(recipe: EvaluateRecipe, scales: float | list[float], **changes: object) -> EvaluateRecipe:
    document = recipe.model_dump()
    document["diffusion"] |= {"guidance_scale": scales} | changes
    return EvaluateRecipe.model_validate(document)


def test_every_guidance_scale_is_measured_as_it_is_alone(
    recipe: EvaluateRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = at_scales(recipe, [2.0, 1.0], guidance_interval=[0.2, 0.9])
    alone = [at_scales(recipe, 2.0, guidance_interval=[0.2, 0.9]), at_scales(recipe, 1.0)]
    loads = []
    read = plans.read_diffusion
    monkeypatch.setattr(plans, "read_diffusion", lambda *args, **options: loads.append(1) or read(*args, **options))
    together = evaluate(several, work=tmp_path / "together")
    assert len(loads) == 1
    separately = [evaluation for each in alone for evaluation in evaluate(each, work=tmp_path / "alone")]
    assert [each.to_dict() for each in together] == [each.to_dict() for each in separately]
    assert [each.guidance_scale for each in together] == [2.0, 1.0]
    assert not list((tmp_path / "together").iterdir())


def test_a_stop_at_a_later_scale_loses_no_earlier_one(
    recipe: EvaluateRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = at_scales(recipe, [1.0, 1.5])
    made: list[float] = []
    batches = GeneratedSamples.batches

    def stop_at_the_fifth(self: GeneratedSamples, ranges: list[range]):
        made.append(self._settings.guidance_scale)
        if len(made) == 5:
            raise KeyboardInterrupt
        return batches(self, ranges)

    monkeypatch.setattr(GeneratedSamples, "batches", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(several, work=tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 2
    stopped = evaluate(several, work=tmp_path / "work")
    assert made == [1.0] * 3 + [1.5] * 2 + [1.5] * 2
    assert not list((tmp_path / "work").iterdir())
    assert [each.to_dict() for each in stopped] == [
        each.to_dict() for each in evaluate(several, work=tmp_path / "whole")
    ]


def test_labels_are_the_published_ones(model: Path) -> None:
    golden = json.loads((GOLDEN / "misc.json").read_text())
    pipeline = load_diffusion(model)
    pipeline.config = pipeline.config.replace(num_classes=1000)
    samples = GeneratedSamples(pipeline, 50_000, SampleSettings(seed=0), 32)
    labels = [int(samples.name(index).split("_c")[1]) for index in range(64)]
    assert labels == golden["sample_class_seed0_n50000_first64"]
