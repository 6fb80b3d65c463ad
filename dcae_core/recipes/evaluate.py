"""The recipe of `dcae eval`: what is measured, on which images, by which metrics, and what to expect."""

import sys
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dcae_core.recipes.settings import (
    AlphaRule,
    CompileChoice,
    ComputingType,
    NonNegative,
    NonNegativeNumber,
    NumSteps,
    Positive,
    Recipe,
    Section,
)

MetricName = Literal[
    "psnr", "ssim", "lpips", "fid", "sfid", "is", "precision_recall", "kid", "fd_dinov2", "cmmd", "frechet"
]
RECONSTRUCTION_METRICS: tuple[MetricName, ...] = ("psnr", "ssim", "lpips")
REFERENCE_METRICS: tuple[MetricName, ...] = ("fid", "sfid", "precision_recall", "kid", "fd_dinov2", "cmmd", "frechet")
MEASURED_NAMES = (
    "psnr",
    "ssim",
    "lpips",
    "fid",
    "sfid",
    "is",
    "precision",
    "recall",
    "kid",
    "fd_dinov2",
    "cmmd",
    "frechet",
)
SCORE_NAMES = (*MEASURED_NAMES, "latent_mean", "latent_rms", "latent_std")


WayToNoise = Annotated[float, Field(ge=0, le=1)]
"""A place on the way from data (0) to noise (1)."""


def _one_or_several(value: Any) -> Any:
    scales = value if isinstance(value, list) else [value]
    if not scales or any(type(scale) not in (int, float) or not 0 <= scale <= sys.float_info.max for scale in scales):
        raise ValueError("Input should be a number from 0 on, or a list of such numbers")
    return value


GuidanceScales = Annotated[float | list[float], BeforeValidator(_one_or_several)]
"""One guidance scale, or several to be measured one after the other."""


class AutoencoderSubject(Section):
    """An autoencoder: images go through it and are compared with what comes out."""

    model: str | None = None
    """Zoo name, hub id or directory; null is the embedded model."""
    dtype: ComputingType = "fp32"
    """Number type of the network."""


class DiffusionSubject(Section):
    """A diffusion model: it makes images, which are compared with a reference."""

    model: str | None = None
    """Zoo name, hub id or directory; null is the embedded model."""
    autoencoder: str | None = None
    """Where to take the autoencoder from; null is where the model's own files say."""
    num: Positive = 50_000
    """How many samples."""
    guidance_scale: GuidanceScales = 1.0
    """Classifier-free guidance; 1.0 is none. A list, such as [1.0, 1.2, 1.5], measures each of them."""
    guidance_interval: Annotated[list[WayToNoise], Field(min_length=2, max_length=2)] | None = None
    """Guide only here on the way from data (0) to noise (1), as [low, high] (arXiv 2404.07724); null is everywhere."""
    autoguidance: str | None = None
    """Guide away from this weaker model of the same task (arXiv 2406.02507); null is from its own without classes."""
    sampler: str | None = None
    """Null is the published one for this network."""
    num_steps: NumSteps | None = None
    """Null is the sampler's default."""
    seed: NonNegative = 0
    """Of the noise, and of the labels: torch.randint over the classes, as published."""
    dtype: ComputingType = "fp32"
    """Number type of the networks."""


class EvaluationExecution(Section):
    """How the same mathematics is computed."""

    tf32: bool | None = None
    """Round the inputs of float32 products and convolutions to 10 bits on NVIDIA GPUs, as published: yes, no, or null:
    PyTorch's default, convolutions alone."""
    compile: CompileChoice = "auto"
    """Whether networks run compiled: auto (on CUDA, where the number of images repays it), always or never."""


class Expectation(Section):
    """A published figure, and how far a repetition may be from it."""

    value: float
    """The figure."""
    tolerance: NonNegativeNumber
    """Largest difference that counts as the same."""
    source: str
    """Where it is published."""


class EvaluateRecipe(Recipe):
    """A whole evaluation."""

    command: Literal["eval"] = "eval"
    """Says that this is a recipe for `dcae eval`."""
    autoencoder: AutoencoderSubject | None = None
    """Measure an autoencoder ..."""
    diffusion: DiffusionSubject | None = None
    """... or a diffusion model ..."""
    generated: str | None = None
    """... or images from anywhere: a folder, a glob, a list, tar shards or parquet files."""
    images: str | None = None
    """Images that go through an autoencoder; null is the sample pack."""
    num_images: Positive | None = None
    """How many of them, from the first; null is all."""
    resolution: Positive | None = 512
    """Images are cut to squares of this side (ADM centre crop); null leaves them as they are, all of one size."""
    alpha: AlphaRule = "white"
    """Transparent images: composed on white, and 16 bits rescaled; or drop: `convert("RGB")`, as published."""
    metrics: Annotated[list[MetricName], Field(min_length=1)] = ["psnr", "ssim"]
    """What is measured."""
    reference: str | None = None
    """What to compare with: statistics of `dcae fid-ref`, the published code or ADM, or images; null: the originals."""
    resize: Literal["half_pixel", "tensorflow"] | None = None
    """How images become Inception's input for FID: half_pixel (published), tensorflow (ADM); null: as the reference."""
    inception_weights: str | None = None
    """A file of weights with the published names and shapes; null downloads the published one."""
    dinov2: str = "facebook/dinov2-large"
    """Hub id or directory of the DINOv2 of fd_dinov2; published figures are of the large one."""
    clip: str = "openai/clip-vit-large-patch14-336"
    """Hub id or directory of the CLIP of cmmd; published figures are of this one."""
    batch_size: Positive = 8
    """Images at a time in each process; part of the protocol, since it moves float32 results by 1e-6."""
    damaged: Literal["skip", "fail"] = "skip"
    """An image that cannot be decoded is listed and left out, or ends the evaluation."""
    execution: EvaluationExecution = EvaluationExecution()
    """How it is computed."""
    expected: dict[str, Expectation] = {}
    """Published figures by score name: psnr, fid, latent_mean, ...; compared with what one guidance scale gives."""

    def scales(self) -> list["EvaluateRecipe"]:
        """A recipe for each guidance scale, in the order given; the whole one where there are not several.

        Without guidance (a scale of 1) there is neither interval nor autoguidance.
        """
        subject = self.diffusion
        if subject is None or not isinstance(subject.guidance_scale, list):
            return [self]
        unguided = {"guidance_interval": None, "autoguidance": None}
        changes = [{"guidance_scale": scale} | (unguided if scale == 1 else {}) for scale in subject.guidance_scale]
        return [self.model_copy(update={"diffusion": subject.model_copy(update=change)}) for change in changes]

    def faults(self) -> list[str]:
        """Faults between settings: nothing or two things to measure, metrics that it does not have."""
        subjects = [name for name in ("autoencoder", "diffusion", "generated") if getattr(self, name) is not None]
        if len(subjects) != 1:
            found = " and ".join(subjects) or "none"
            return [f"autoencoder, diffusion, generated: give exactly one of them to measure, not {found}"]
        faults = [] if self.diffusion is None else _guidance_faults(self.diffusion)
        if self.autoencoder is None:
            wrong = [name for name in self.metrics if name in RECONSTRUCTION_METRICS]
            if wrong:
                faults.append(f"metrics: {', '.join(wrong)} compare reconstructions; {subjects[0]} has none")
            missing = [name for name in self.metrics if name in REFERENCE_METRICS]
            if missing and self.reference is None:
                faults.append(
                    f"reference: {missing[0]} compares with a reference; "
                    "give a file of `dcae fid-ref` or ADM, or a folder of images"
                )
        elif "precision_recall" in self.metrics and self.reference is not None:
            faults.append("metrics: precision_recall of an autoencoder compares with the images; leave reference out")
        unknown = [name for name in self.expected if name not in SCORE_NAMES]
        if unknown:
            faults.append(f"expected.{unknown[0]}: no such score; choose from {', '.join(SCORE_NAMES)}")
        if len(set(self.metrics)) < len(self.metrics):
            faults.append("metrics: one is named twice")
        return faults


def _guidance_faults(subject: DiffusionSubject) -> list[str]:
    faults, interval = [], subject.guidance_interval
    scales = subject.guidance_scale if isinstance(subject.guidance_scale, list) else [subject.guidance_scale]
    if len(set(scales)) < len(scales):
        faults.append("diffusion.guidance_scale: one is named twice")
    if interval is not None and interval[0] >= interval[1]:
        faults.append(f"diffusion.guidance_interval: goes from low to high, not from {interval[0]} to {interval[1]}")
    for name in ("guidance_interval", "autoguidance"):
        if getattr(subject, name) is not None and set(scales) == {1}:
            faults.append(f"diffusion.{name}: changes nothing at a guidance_scale of 1")
    return faults
