"""`--cfg-interval` and `--autoguidance` of `dcae sample` and `dcae eval`: what they do, record and refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcae_core import load_diffusion
from tests.diffusion_models import write_diffusion
from tests.metrics.cheap_inception import CheapExtractor


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A model and smaller ones on latents of the same autoencoder, and some of other tasks."""
    directory = tmp_path_factory.mktemp("models")
    write_diffusion(directory / "strong", "velocity", depth=4)
    others = {
        "weak": {},
        "fewer_classes": {"num_classes": 3},
        "wider": {"in_channels": 8},
        "longer": {"input_size": 16},
    }
    for name, settings in others.items():
        write_diffusion(directory / name, "velocity", **settings)
    write_diffusion(directory / "noise", "epsilon")
    for name in (*others, "noise"):
        describe(directory / name, autoencoder=str(directory / "strong-autoencoder"))
    return directory


def describe(model: Path, **changes) -> None:
    values = json.loads((model / "dcae.json").read_text())
    values["diffusion"] |= {"autoencoder_path": None} | changes
    (model / "dcae.json").write_text(json.dumps(values))


@pytest.fixture
def sample(dcae, models: Path, tmp_path: Path):
    def run(*options, out="out", model="strong"):
        command = ("sample", "--model", models / model, "--classes", "1,5", "--sampler", "heun", "--steps", 5)
        return dcae(*command, "--save-latents", "-o", tmp_path / out, *options)

    return run


def latents(directory: Path) -> torch.Tensor:
    return load_file(directory / "latents.safetensors")["latents"]


def test_both_change_the_sample_and_are_what_the_library_makes(sample, models: Path, tmp_path: Path) -> None:
    both = ("--cfg-interval", "0.2:0.8", "--autoguidance", models / "weak")
    kinds = {"plain": (), "interval": both[:2], "weak": both[2:], "both": both}
    for name, options in kinds.items():
        sample("--cfg", 2, *options, out=name).assert_succeeds()
    found = [latents(tmp_path / name) for name in kinds]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])
    pipeline = load_diffusion(models / "strong", autoguidance=models / "weak")
    made = pipeline.generate([1, 5], 2.0, sampler="heun", num_steps=5, guidance_interval=(0.2, 0.8))
    assert torch.allclose(made.latents, latents(tmp_path / "both"), rtol=1e-5, atol=1e-5)
    sample("--cfg", 2, "--cfg-interval", "0:1", out="whole").assert_succeeds()
    assert torch.equal(latents(tmp_path / "whole"), latents(tmp_path / "plain"))


def test_the_record_names_them_and_another_run_is_refused(sample, models: Path, tmp_path: Path) -> None:
    options = ("--cfg", 2, "--cfg-interval", "0.2:0.8", "--autoguidance", models / "weak")
    sample(*options).assert_succeeds()
    record = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert record["guidance_interval"] == [0.2, 0.8]
    assert record["autoguidance"] == "weak"
    assert len(record["autoguidance_fingerprint"]) == 64
    assert (tmp_path / "out" / record["autoguidance_path"]).resolve() == (models / "weak").resolve()
    sample(*options).assert_succeeds()
    sample(*options[:2], *options[4:]).assert_fails(2, "another guidance_interval")
    sample(*options[:4]).assert_fails(2, "another autoguidance")
    sample(*options[:5], models / "strong").assert_fails(2, "another autoguidance")
    assert json.loads((tmp_path / "out" / "sample.json").read_text()) == record


def test_a_run_of_before_they_could_be_given_had_neither(sample, models: Path, tmp_path: Path) -> None:
    sample("--cfg", 2).assert_succeeds()
    file = tmp_path / "out" / "sample.json"
    record = json.loads(file.read_text())
    new = ("guidance_interval", "autoguidance", "autoguidance_fingerprint", "autoguidance_path")
    file.write_text(json.dumps({name: value for name, value in record.items() if name not in new}))
    sample("--cfg", 2, "--cfg-interval", "0.2:0.8").assert_fails(2, "another guidance_interval")
    sample("--cfg", 2, "--autoguidance", models / "weak").assert_fails(2, "another autoguidance")
    sample("--cfg", 2).assert_succeeds()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cfg", 2, "--cfg-interval", "0.8:0.2"), ["0.8:0.2", "upwards"]),
        (("--cfg", 2, "--cfg-interval", "0.2:1.2"), ["0.2:1.2", "1 (noise)"]),
        (("--cfg", 2, "--cfg-interval", "nan:1"), ["nan", "1 (noise)"]),
        (("--cfg", 2, "--cfg-interval", "0.5"), ["--cfg-interval", "LOW:HIGH", "0.2:0.8"]),
        (("--cfg", 2, "--cfg-interval", "a:b"), ["--cfg-interval", "a:b"]),
        (("--cfg-interval", "0.2:0.8"), ["guidance scale of 1"]),
        (("--autoguidance", "weak"), ["guidance scale of 1"]),
        (("--cfg", 2, "--autoguidance", "dc-ae-f32c32-in-1.0"), ["is an autoencoder"]),
    ],
)
def test_bad_values_are_told_in_one_line(sample, options, words) -> None:
    sample(*options).assert_fails(2, *words)


@pytest.mark.parametrize(
    ("weaker", "words"),
    [
        ("noise", ["prediction", "epsilon instead of velocity"]),
        ("fewer_classes", ["number of classes", "3 instead of 10"]),
        ("wider", ["latent", "(8, 8, 8) instead of (4, 8, 8)"]),
        ("longer", ["latent", "(4, 16, 16) instead of (4, 8, 8)"]),
    ],
)
def test_a_model_of_another_task_is_no_weaker_one(sample, models: Path, weaker, words) -> None:
    sample("--cfg", 2, "--autoguidance", models / weaker).assert_fails(3, "autoguidance", weaker, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"autoencoder": "elsewhere"}, ["autoencoder", "elsewhere instead of"]),
        ({"scaling_factor": 0.7}, ["normalisation"]),
        ({"normalisation": {"mean": [0.0] * 4, "std": [1.0] * 4}}, ["normalisation"]),
    ],
)
def test_other_latents_make_no_weaker_model(sample, models: Path, tmp_path: Path, changes, words) -> None:
    write_diffusion(tmp_path / "weak", "velocity")
    describe(tmp_path / "weak", **{"autoencoder": str(models / "strong-autoencoder")} | changes)
    sample("--cfg", 2, "--autoguidance", tmp_path / "weak").assert_fails(3, "autoguidance", *words)


def test_fingerprints_tell_more_than_names_where_both_have_them(sample, models: Path, tmp_path: Path) -> None:
    prints = {"autoencoder_fingerprint": "a" * 64, "encoder_fingerprint": "b" * 64}
    place = str(models / "strong-autoencoder")
    for name, changes in (
        ("guided", prints),
        ("same", prints | {"autoencoder": "moved"}),
        ("other", {"autoencoder": place}),
    ):
        write_diffusion(tmp_path / name, "velocity")
        describe(tmp_path / name, **{"autoencoder": place} | changes)
    describe(tmp_path / "other", autoencoder_fingerprint="c" * 64, encoder_fingerprint="d" * 64)
    command = ("--cfg", 2, "--autoencoder", place, "--autoguidance")
    sample(*command, tmp_path / "same", model=tmp_path / "guided", out="same").assert_succeeds()
    sample(*command, tmp_path / "other", model=tmp_path / "guided").assert_fails(3, "another autoencoder")


def test_without_classes_a_weaker_model_can_guide(dcae, tmp_path: Path) -> None:
    for name in ("strong", "weak"):
        write_diffusion(tmp_path / name, num_classes=0, depth=4 if name == "strong" else 2)
    describe(tmp_path / "weak", autoencoder=str(tmp_path / "strong-autoencoder"))
    command = ("sample", "--model", tmp_path / "strong", "--num", 1, "--steps", 2, "--cfg", 2)
    dcae(*command, "-o", tmp_path / "none").assert_fails(2, "no classes")
    dcae(*command, "-o", tmp_path / "out", "--autoguidance", tmp_path / "weak").assert_succeeds()


@pytest.fixture
def evaluate(dcae, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    extractor = CheapExtractor()
    monkeypatch.setattr("dcae_core.pipelines.evaluation.evaluate.load_inception", lambda *_, **__: extractor)
    rows = np.random.default_rng(0).standard_normal((30, 2048))
    np.savez(tmp_path / "ref.npz", mu=rows.mean(axis=0), sigma=np.cov(rows, rowvar=False))

    def run(*options, json=True):
        common = ("--ref", tmp_path / "ref.npz", "--work", tmp_path / "work", "--batch-size", 4)
        options = (*options, "--json") if json else options
        return dcae(
            "eval", "--model", models / "strong", "--num", 5, "--sampler", "heun", "--steps", 3, *common, *options
        )

    return run


def test_evaluations_take_them_and_say_so(evaluate, models: Path) -> None:
    documents = []
    for options in ((), ("--cfg-interval", "0.2:0.8"), ("--autoguidance", models / "weak")):
        run = evaluate("--cfg", 2, *options)
        run.assert_succeeds()
        documents.append(json.loads(run.stdout))
    assert len({document["scores"]["fid"]["value"] for document in documents}) == 3
    plain, interval, weak = (document["settings"] for document in documents)
    assert "guidance_interval" not in plain["diffusion"]
    assert interval["diffusion"]["guidance_interval"] == [0.2, 0.8]
    assert weak["diffusion"]["autoguidance"] == str(models / "weak")
    assert len(weak["autoguidance"]) == 64


def test_several_scales_make_a_row_a_record_and_a_point_each(evaluate, tmp_path: Path) -> None:
    report = tmp_path / "report"
    run = evaluate("--cfg", "1.5,1.0,3", "--report", report)
    run.assert_succeeds()
    documents = json.loads(run.stdout)
    assert [document["settings"]["diffusion"]["guidance_scale"] for document in documents] == [1.5, 1.0, 3.0]
    distances = [document["scores"]["fid"]["value"] for document in documents]
    assert len(set(distances)) == 3
    assert run.stderr.count("fewer than 2048 features") == 1
    assert json.loads((report / "evaluation.json").read_text()) == documents
    page = (report / "index.html").read_text()
    assert 'aria-label="FID over the guidance scale"' in page
    points = re.search(r'<polyline [^>]*points="([^"]*)"', page)[1].split()
    assert len(points) == 3
    assert points == sorted(points, key=lambda point: float(point.split(",")[0]))  # drawn from the lowest scale on
    assert [f"Samples at guidance {scale}" in page for scale in ("1.5", "1", "3")] == [True] * 3
    assert "1.5, 1.0, 3.0" in page

    table = evaluate("--cfg", "1.5,1.0,3", json=False).stdout.splitlines()
    assert table[0].endswith("strong, 5 images at each of 3 guidance scales")
    assert [row.split() for row in table[2:5]] == [
        [scale, f"{distance:.4f}"] for scale, distance in zip(("1.5", "1", "3"), distances, strict=True)
    ]


def test_a_recipe_may_name_several_scales(evaluate) -> None:
    run = evaluate("--set", "diffusion.guidance_scale=[1, 2.5]")
    run.assert_succeeds()
    assert [document["settings"]["diffusion"]["guidance_scale"] for document in json.loads(run.stdout)] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        (("--cfg", "1.0,"), 2, ["--cfg is a number, or several such as 1.0,1.2,1.5, not '1.0,'"]),
        (("--cfg", "high"), 2, ["--cfg", "'high'"]),
        (("--cfg", "1.0,nan"), 2, ["guidance_scale", "nan"]),
        (("--cfg", "1.0,-1"), 2, ["guidance_scale", "-1"]),
        (("--cfg", "2,1.5,2"), 2, ["guidance_scale", "named twice"]),
        (("--set", "diffusion.guidance_scale=[]"), 2, ["guidance_scale", "[]"]),
        (("--set", "diffusion.guidance_scale=true"), 2, ["guidance_scale", "True"]),
        (("--cfg", 2, "--cfg-interval", "0.8:0.2"), 2, ["guidance_interval", "0.8"]),
        (("--cfg", 2, "--cfg-interval", "0.2:1.2"), 2, ["guidance_interval", "1"]),
        (("--cfg", 2, "--cfg-interval", "half"), 2, ["LOW:HIGH"]),
        (("--cfg-interval", "0.2:0.8"), 2, ["guidance_interval", "guidance_scale of 1"]),
        (("--autoguidance", "weak"), 2, ["autoguidance", "guidance_scale of 1"]),
        (("--cfg", 2, "--autoguidance", "noise"), 3, ["epsilon instead of velocity"]),
    ],
)
def test_evaluations_refuse_bad_values(evaluate, models: Path, monkeypatch, options, exit_code, words) -> None:
    monkeypatch.chdir(models)
    evaluate(*options).assert_fails(exit_code, *words)
