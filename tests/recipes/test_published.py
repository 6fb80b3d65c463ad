"""The shipped recipes against what is published, field by field (efficientvit applications/dc_ae, and its README)."""

import pytest

from dcae_core.recipes.loading import load_any_recipe, shipped_recipes

UVIT = {"lr": 2e-4, "decay": 0.03, "decays": "all", "betas": [0.99, 0.99], "warmup": 5000, "precision": "bf16"}
USIT = UVIT | {"lr": 1e-4, "decay": 0.0}
DIT = {"lr": 1e-4, "decay": 0.0, "betas": [0.9, 0.999], "warmup": 0, "precision": "fp16"}
SIZES = {"s": (512, 12, 8), "h": (1152, 28, 16), "2b": (2048, 28, 32), "xl": (1152, 28, 16)}
F32, F64 = "dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0"
TRAININGS = {
    "uvit-s-f32": ("uvit", "s", "epsilon", F32, 1, 500_000, 1024, UVIT),
    "uvit-h-f32": ("uvit", "h", "epsilon", F32, 1, 500_000, 1024, UVIT),
    "uvit-2b-f32": ("uvit", "2b", "epsilon", F32, 1, 500_000, 1024, UVIT),
    "uvit-h-f64": ("uvit", "h", "epsilon", F64, 1, 500_000, 1024, UVIT),
    "uvit-2b-f64": ("uvit", "2b", "epsilon", F64, 1, 500_000, 1024, UVIT),
    "uvit-h-f64-2000k": ("uvit", "h", "epsilon", F64, 1, 2_000_000, 1024, UVIT),
    "uvit-2b-f64-2000k": ("uvit", "2b", "epsilon", F64, 1, 2_000_000, 1024, UVIT),
    "uvit-s-sd-vae-f8": ("uvit", "s", "epsilon", "stabilityai/sd-vae-ft-ema", 2, 500_000, 1024, UVIT),
    "uvit-s-flux-vae-f8": ("uvit", "s", "epsilon", "black-forest-labs/FLUX.1-schnell", 2, 500_000, 1024, UVIT),
    "usit-h-f32": ("uvit", "h", "velocity", F32, 1, 500_000, 1024, USIT),
    "usit-2b-f32": ("uvit", "2b", "velocity", F32, 1, 500_000, 1024, USIT),
    "dit-xl-f32": ("dit", "xl", "epsilon_variance", F32, 1, 3_000_000, 256, DIT),
    "dit-xl-f32-bs1024": ("dit", "xl", "epsilon_variance", F32, 1, 3_000_000, 1024, DIT | {"lr": 2e-4}),
}
# model without "-in-512px" -> FID without guidance, its scale, FID with it
EVALUATIONS = {
    f"{F32}-uvit-s": (46.12, 1.5, 18.08),
    f"{F32}-dit-xl": (9.56, 1.3, 2.84),
    f"{F32}-dit-xl-trainbs1024": (6.88, 1.5, 2.41),
    f"{F32}-uvit-h": (9.83, 1.5, 2.53),
    f"{F64}-uvit-h": (13.754, 1.5, 2.963),
    f"{F64}-uvit-h-train2000k": (12.26, 1.5, 2.66),
    f"{F32}-uvit-2b": (8.13, 1.5, 2.30),
    f"{F64}-uvit-2b": (7.78, 1.5, 2.47),
    f"{F64}-uvit-2b-train2000k": (6.50, 1.5, 2.25),
    f"{F32}-usit-h": (3.791, 1.2, 1.883),
    f"{F32}-usit-2b": (2.90, 1.15, 1.721),
}
OURS = {"train_diffusion/emoji", "train_diffusion/modern-usit", "train_diffusion/tiny"}


def test_every_published_training_has_a_recipe() -> None:
    there = {name for name in shipped_recipes() if name.startswith("train_diffusion/")} - OURS
    assert {name.split("/")[1] for name in there} == TRAININGS.keys()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_the_published_one(name: str) -> None:
    recipe = load_any_recipe(shipped_recipes()[f"train_diffusion/{name}"])
    architecture, size, objective, autoencoder, patch_size, steps, batch_size, published = TRAININGS[name]
    network, optimiser = recipe.network, recipe.optimiser
    assert (network.architecture, network.patch_size, network.num_classes) == (architecture, patch_size, 1000)
    assert (network.hidden_size, network.depth, network.num_heads) == SIZES[size]
    assert (recipe.objective, recipe.autoencoder, recipe.resolution) == (objective, autoencoder, 512)
    assert (recipe.steps, recipe.batch_size, recipe.label_dropout) == (steps, batch_size, 0.1)
    assert (optimiser.learning_rate, optimiser.weight_decay) == (published["lr"], published["decay"])
    assert (optimiser.betas, optimiser.warmup_steps) == (published["betas"], published["warmup"])
    assert (optimiser.schedule, optimiser.clip_gradient_norm) == ("constant", None)
    if optimiser.weight_decay:
        assert optimiser.decay == published["decays"]
    assert (recipe.ema.decay, recipe.ema.warmup_steps) == (0.9999, 2000)
    assert (recipe.execution.precision, recipe.execution.tf32) == (published["precision"], True)
    # What came after the publication is off.
    assert (recipe.normalisation, recipe.times.distribution, recipe.times.shift) == ("scalar", "uniform", None)
    assert (recipe.min_snr_gamma, recipe.augmentation, network.qk_norm) == (None, None, False)
    if objective == "epsilon_variance" or objective == "velocity":
        guidance = {"dit-xl-f32": 1.3, "usit-h-f32": 1.2, "usit-2b-f32": 1.15}.get(name, 1.5)
        assert recipe.sampling.guidance_scale == guidance


def test_evaluations_are_the_published_ones() -> None:
    """Every quoted FID, with and without guidance, with 64 samples at a time in each process and TF32 on."""
    found = {}
    for name, path in shipped_recipes().items():
        if name.startswith("eval/") and (recipe := load_any_recipe(path)).diffusion is not None:
            subject = recipe.diffusion
            found[subject.model, subject.guidance_scale] = recipe.expected["fid"].value
            assert (subject.num, subject.seed, subject.sampler, subject.num_steps) == (50_000, 0, None, None)
            assert (recipe.batch_size, recipe.execution.tf32, subject.dtype) == (64, True, "fp32")
            assert (f"cfg{subject.guidance_scale:g}" if subject.guidance_scale != 1 else "no-cfg") in name
    expected = {}
    for name, (plain, scale, guided) in EVALUATIONS.items():
        size, _, suffix = name.partition("-train")
        model = f"{size}-in-512px" + (f"-train{suffix}" if suffix else "")
        expected |= {(model, 1.0): plain, (model, scale): guided}
    assert found == expected


def test_published_recipes_read_images_as_the_published_code_does() -> None:
    for name, path in shipped_recipes().items():
        recipe = load_any_recipe(path)
        if name.startswith("encode_dataset/imagenet") or name.startswith("eval/autoencoder-"):
            assert recipe.alpha == "drop", name
        if name.startswith("eval/autoencoder-"):
            assert recipe.execution.tf32, name
