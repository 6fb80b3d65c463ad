"""From classes to images: what a sample depends on, and what it does not."""

import json

import pytest
import torch

from dcae_core import load_diffusion
from dcae_core.data.class_names import imagenet_class_names, parse_classes
from dcae_core.data.images import tensor_to_uint8
from dcae_core.diffusion import guide, sample_dpm_solver, sample_noise
from dcae_core.diffusion.samplers import SAMPLERS
from dcae_core.errors import CheckpointError, ResourceError, UsageError
from dcae_core.pipelines.generate import SampleSettings, draw_classes
from tests.diffusion_models import SCALING_FACTOR, write_diffusion
from tests.golden import GOLDEN, relative_error

CLASSES = [1, 5, 9, 0, 5]
PREDICTIONS = ["epsilon", "velocity", "epsilon_variance"]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    return {kind: load_diffusion(write_diffusion(directory / kind, kind)) for kind in PREDICTIONS}


def test_images_and_latents_are_those_of_the_parts_put_together(pipelines) -> None:
    pipeline = pipelines["epsilon"]
    images, latents = pipeline.generate(CLASSES, guidance_scale=2.0, seed=3, num_steps=4, batch_size=5)
    model = guide(pipeline.denoiser, torch.tensor(CLASSES), 10, 2.0)
    with torch.no_grad():
        expected = sample_dpm_solver(model, sample_noise(3, range(5), (4, 8, 8)), 4) / SCALING_FACTOR
        pixels = tensor_to_uint8(pipeline.autoencoder.decode(expected[:1]))
    assert relative_error(latents, expected) < 1e-6
    assert [image.size for image in images] == [(64, 64)] * 5
    assert torch.equal(
        torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8), pixels[0].permute(1, 2, 0).flatten()
    )


FIXED = [(kind, name) for name, sampler in SAMPLERS.items() for kind in sampler.predictions[:1] if sampler.num_steps]


@pytest.mark.parametrize(("kind", "sampler"), [*FIXED, ("epsilon_variance", "ddpm")])
def test_a_sample_depends_on_seed_and_number_not_on_the_batch(pipelines, kind, sampler) -> None:
    classes = [i % 10 for i in range(16)]
    runs = [
        pipelines[kind].generate(classes, seed=5, sampler=sampler, num_steps=6, batch_size=batch_size)
        for batch_size in (1, 16, 5)
    ]
    for images, latents in runs[1:]:
        assert relative_error(latents, runs[0].latents) < 1e-5
        for ours, theirs in zip(images, runs[0].images, strict=True):
            assert max(abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)) <= 1
    longer = pipelines[kind].generate([*classes, 3], seed=5, sampler=sampler, num_steps=6, batch_size=1)
    assert torch.equal(longer.latents[:16], runs[0].latents)
    other = pipelines[kind].generate(classes[:1], seed=6, sampler=sampler, num_steps=6, batch_size=1)
    assert relative_error(other.latents, runs[0].latents[:1]) > 0.1


def test_the_adaptive_sampler_depends_on_its_batch_by_its_tolerance(pipelines) -> None:
    alone = pipelines["velocity"].generate(CLASSES, batch_size=1).latents
    together = pipelines["velocity"].generate(CLASSES, batch_size=5).latents
    assert relative_error(together, alone) < 1e-2


def test_batches_have_one_shape_so_skipping_some_changes_nothing(pipelines) -> None:
    pipeline, settings = pipelines["epsilon"], SampleSettings(num_steps=3)
    every = list(pipeline.generate_batches(CLASSES, settings, batch_size=2))
    assert [list(batch.indices) for batch in every] == [[0, 1], [2, 3], [4]]
    (last,) = pipeline.generate_batches(CLASSES, settings, batch_size=2, skip=lambda number: number != 2)
    assert torch.equal(last.latents, every[2].latents)
    assert torch.equal(last.pixels, every[2].pixels)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_half_precision_stays_finite_and_near(pipelines, tmp_path, kind, dtype, bound) -> None:
    model = write_diffusion(tmp_path / "model", kind)
    steps = None if kind == "velocity" else 20
    half = load_diffusion(model, dtype=dtype).generate(CLASSES, guidance_scale=1.5, num_steps=steps)
    full = pipelines[kind].generate(CLASSES, guidance_scale=1.5, num_steps=steps)
    assert torch.isfinite(half.latents).all()
    assert relative_error(half.latents, full.latents) < bound


def test_values_beyond_the_number_type_are_told_not_drawn(pipelines, monkeypatch) -> None:
    pipeline = pipelines["epsilon"]
    monkeypatch.setattr(pipeline, "denoiser", lambda x, t, y: x * float("inf"))
    with pytest.raises(CheckpointError, match="bf16"):
        pipeline.generate([1], num_steps=2)


def test_out_of_memory_while_decoding_falls_back_to_tiles(pipelines, tmp_path, monkeypatch) -> None:
    pipeline = load_diffusion(write_diffusion(tmp_path / "model"))
    whole = pipeline.generate([1, 2], num_steps=3).images
    decode = pipeline.autoencoder.decode

    def limited(z):
        if z.shape[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(z)

    monkeypatch.setattr(pipeline.autoencoder, "decode", limited)
    tiled = pipeline.generate([1, 2], num_steps=3).images
    assert pipeline.tile == 32
    assert [image.size for image in tiled] == [image.size for image in whole]
    monkeypatch.setattr(pipeline.autoencoder, "decode", lambda z: limited(torch.zeros(1, 4, 8, 8)))
    with pytest.raises(ResourceError, match="decoding"):
        pipeline.generate([1], num_steps=3)


def test_out_of_memory_while_sampling_says_what_to_lower(pipelines, monkeypatch) -> None:
    def exhausted(x, t, y):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pipelines["epsilon"], "denoiser", exhausted)
    with pytest.raises(ResourceError, match="--batch-size"):
        pipelines["epsilon"].generate([1], num_steps=2)


def test_a_network_without_classes(tmp_path) -> None:
    pipeline = load_diffusion(write_diffusion(tmp_path / "model", num_classes=0))
    assert pipeline.generate([0, 0], num_steps=3).latents.shape == (2, 4, 8, 8)
    with pytest.raises(UsageError, match="no classes"):
        pipeline.generate([0], guidance_scale=2.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": []}, "nothing to sample"),
        ({"classes": [10]}, "0 to 9"),
        ({"classes": [-1]}, "0 to 9"),
        ({"num_steps": 0}, "at least 1"),
        ({"sampler": "heun"}, "dpm-solver"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"seed": -1}, "seed"),
        ({"classes": [1.5]}, "class 1.5"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_what_cannot_be_asked_for(pipelines, arguments, words) -> None:
    with pytest.raises(UsageError, match=words):
        pipelines["epsilon"].generate(**{"classes": [1]} | arguments)


def test_labels_of_the_published_protocol() -> None:
    golden = json.loads((GOLDEN / "misc.json").read_text())
    labels = draw_classes(50000, 1000, 0)
    assert labels[:64] == golden["sample_class_seed0_n50000_first64"]
    assert sum(labels) == golden["sample_class_seed0_n50000_sum"]
    assert draw_classes(100, 1000, 7)[:16] == golden["sample_class_seed7_n100_first16"]
    with pytest.raises(UsageError, match="at least 1"):
        draw_classes(0, 1000, 0)


def test_classes_by_number_and_name() -> None:
    names = imagenet_class_names()
    assert len(set(names)) == 1000
    assert (names[207], names[360], names[980]) == ("golden retriever", "otter", "volcano")
    assert parse_classes("207, Golden-Retriever,volcano,207", 1000) == [207, 207, 980, 207]
    assert parse_classes("b,a", 2, ["a", "b"]) == [1, 0]
    for text, num_classes, words in (
        ("golden retreiver", 1000, r"golden retriever \(207\)"),
        ("spaniel", 1000, "spaniel"),
        ("1000", 1000, "0 to 999"),
        ("-1", 1000, "0 to 999"),
        ("qqqqqq", 1000, "for example: tench"),
        ("", 1000, "no class"),
        ("volcano", 10, "have no names"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_classes(text, num_classes)
