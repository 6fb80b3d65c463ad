"""What an evaluation measures, on which images: an autoencoder, a diffusion model, images from anywhere."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.autoguidance import read_weaker_network
from dcae_core.checkpoints.denoiser_files import DiffusionFiles
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.devices import parse_dtype
from dcae_core.metrics.lpips import load_lpips
from dcae_core.models.inference import for_run, prepare_for_inference
from dcae_core.pipelines.encode import encoder_name
from dcae_core.pipelines.evaluation import inputs
from dcae_core.pipelines.evaluation.parts import Measure, ReconstructionMeasurement
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
from dcae_core.recipes.evaluate import DiffusionSubject, EvaluateRecipe
from dcae_core.weights import fingerprint


@dataclass(frozen=True)
class Plan:
    """What is measured on which images, once everything is loaded: of one guidance scale, where there is guidance.

    Attributes:
        recipe: with the one guidance scale.
        subject: what is measured, in words.
        measure: of a batch of `source`.
        identity: fingerprints and times that the result depends on.
        show: an original -> what comes out, where there is such.
        has_files: whether the images are read, not made.
        damaged: lines about shards that were left out.
        notes: warnings.
    """

    recipe: EvaluateRecipe
    subject: str
    source: inputs.ImageSource
    measure: Measure
    identity: dict[str, Any]
    show: Callable[[Tensor], Tensor] | None = None
    has_files: bool = True
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plans_of(recipe: EvaluateRecipe, device: torch.device | str, features: Measure | None) -> list[Plan]:
    """A plan for each guidance scale, or one; `features`: measured too, None where no metric asks for them."""
    if recipe.autoencoder is not None:
        return [_plan_autoencoder(recipe, device, features)]
    assert features is not None  # the recipe's own check: only autoencoders have other metrics
    if recipe.diffusion is not None:
        return _plan_diffusion(recipe, recipe.diffusion, device, features)
    assert recipe.generated is not None
    images, damaged, notes = inputs.find_once([recipe.generated], recipe.damaged == "skip")
    source = inputs.ImageFiles(images, recipe.resolution, recipe.damaged == "skip", recipe.alpha)
    identity = {"images": inputs.identity_of(images)}
    subject = f"images in {recipe.generated}"
    return [Plan(recipe, subject, source, features, identity, damaged=damaged, notes=notes)]


def _plan_autoencoder(recipe: EvaluateRecipe, device: torch.device | str, features: Measure | None) -> Plan:
    assert recipe.autoencoder is not None
    place = recipe.images or str(inputs.sample_pack_directory())
    images, damaged, notes = inputs.find_once([place], recipe.damaged == "skip")
    if recipe.num_images is not None:
        images = images[: recipe.num_images]
    source = inputs.ImageFiles(images, recipe.resolution, recipe.damaged == "skip", recipe.alpha)
    lpips = load_lpips("alex", device=device) if "lpips" in recipe.metrics else None
    plain = load_autoencoder(recipe.autoencoder.model, prepare=False)
    identity = {"images": inputs.identity_of(images), "network": fingerprint(plain)}
    prepared = prepare_for_inference(plain.to(device, parse_dtype(recipe.autoencoder.dtype)))
    network = for_run(prepared, len(images) / recipe.batch_size, recipe.execution.compile)
    measure = ReconstructionMeasurement(
        network, recipe.metrics, lpips=lpips, features=features, with_original_features=recipe.reference is None
    )
    subject = f"autoencoder {encoder_name(recipe.autoencoder.model)}"
    return Plan(
        recipe,
        subject,
        source,
        measure,
        identity,
        lambda images: measure.reconstruct(images)[0].cpu(),
        damaged=damaged,
        notes=notes,
    )


def _plan_diffusion(
    recipe: EvaluateRecipe, subject: DiffusionSubject, device: torch.device | str, features: Measure
) -> list[Plan]:
    """A plan for each guidance scale, all of one pipeline."""
    files = locate_diffusion(subject.model)
    recipes = recipe.scales()
    settings = [_sample_settings(each, files) for each in recipes]
    dtype = parse_dtype(subject.dtype)
    weaker = None
    if subject.autoguidance is not None:
        weaker = read_weaker_network(locate_diffusion(subject.autoguidance), files, device, dtype)
    parts = read_diffusion(files, autoencoder=subject.autoencoder, device=device, dtype=dtype)
    pipeline = DiffusionPipeline(parts, weaker, compile=recipe.execution.compile)
    networks = {"network": fingerprint(pipeline.denoiser), "autoencoder": fingerprint(pipeline.autoencoder)}
    guides = {} if weaker is None else {"autoguidance": fingerprint(weaker)}
    return [
        Plan(
            each,
            f"diffusion model {files.name}",
            inputs.GeneratedSamples(pipeline, subject.num, how, recipe.batch_size),
            features,
            networks | (guides if how.guidance_scale != 1 else {}),
            notes=list(parts.warnings),
            has_files=False,
        )
        for each, how in zip(recipes, settings, strict=True)
    ]


def _sample_settings(recipe: EvaluateRecipe, files: DiffusionFiles) -> SampleSettings:
    """How to sample at the one guidance scale of a recipe; UsageError where the network cannot."""
    subject = recipe.diffusion
    assert subject is not None
    assert not isinstance(subject.guidance_scale, list)
    low, high = subject.guidance_interval or (0.0, 1.0)
    interval = None if subject.guidance_interval is None else (low, high)
    settings = SampleSettings(subject.guidance_scale, subject.seed, subject.sampler, subject.num_steps, interval)
    settings.check(files.prediction, files.config, autoguided=subject.autoguidance is not None)
    return settings
