"""Evaluating an autoencoder, a diffusion model or a folder of samples."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.denoisers import locate_diffusion
from dcae_core.devices import parse_dtype
from dcae_core.distributed import broadcast_object
from dcae_core.errors import DataError
from dcae_core.files import cache_directory
from dcae_core.metrics.inception import InceptionExtractor, load_inception
from dcae_core.metrics.lpips import load_lpips
from dcae_core.metrics.reference import Reference, read_reference
from dcae_core.models.inference import prepare_for_inference
from dcae_core.pipelines.evaluation.inputs import (
    GeneratedSamples,
    ImageFiles,
    ImageSource,
    ReferenceImages,
    find_once,
    identity_of,
    sample_pack_directory,
)
from dcae_core.pipelines.evaluation.parts import Measure, PartStore, measure_parts
from dcae_core.pipelines.evaluation.scores import (
    FEATURES,
    METRICS,
    PER_IMAGE,
    Comparison,
    FeatureMeasurement,
    Gathered,
    LatentStatistics,
    ReconstructionMeasurement,
    Score,
    compare_with_originals,
    compare_with_reference,
    compute_scores,
    gather,
    require_comparable,
    warnings_about,
)
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
from dcae_core.recipes.evaluate import EvaluateRecipe, Expectation
from dcae_core.weights import fingerprint
from dcae_core.zoo import EMBEDDED_AUTOENCODER


def evaluation_key(**ingredients: Any) -> str:
    """A name that is the same for the same evaluation and for no other: 16 hexadecimal digits.

    Args:
        ingredients: settings, fingerprints and hashes that results depend on, of types that JSON knows.
    """
    ingredients |= {"torch": torch.__version__, "dcae": version("dcae")}
    text = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


_LATENT_LABELS = {"latent_mean": "latent mean", "latent_rms": "latent rms", "latent_std": "latent std"}


@dataclass(frozen=True)
class ExpectedFigure:
    """One figure: measured, expected, and whether they agree.

    Attributes:
        name: key of the score.
        label: for people.
        measured: the figure; None where a figure is expected but was not measured.
        spread: its standard deviation, where there is one.
        num_images: that it is over.
        expected: the published figure, where there is one.
    """

    name: str
    label: str
    measured: float | None
    spread: float | None
    num_images: int
    expected: Expectation | None

    @property
    def verdict(self) -> str:
        """In one word; empty where nothing is expected."""
        if self.expected is None:
            return ""
        if self.measured is None:
            return "not measured"
        return "same" if abs(self.measured - self.expected.value) <= self.expected.tolerance else "differs"

    @property
    def measured_text(self) -> str:
        """To four decimals, or a dash."""
        return "-" if self.measured is None else f"{self.measured:.4f}"

    @property
    def spread_text(self) -> str:
        """To four decimals, or nothing."""
        return "" if self.spread is None else f"± {self.spread:.4f}"

    @property
    def expected_text(self) -> str:
        """The figure and its tolerance, or nothing."""
        return "" if self.expected is None else f"{self.expected.value:g} ± {self.expected.tolerance:g}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        assert self.expected is not None
        return self.expected.model_dump() | {"measured": self.measured, "verdict": self.verdict}


def compare(evaluation: "Evaluation", expected: Mapping[str, Expectation]) -> list[ExpectedFigure]:
    """Every measured figure, then those that are expected and were not measured."""
    spreads = {score.name: score.spread for score in evaluation.scores}
    measured = evaluation.measured()
    names = [*measured, *(name for name in expected if name not in measured)]
    return [
        ExpectedFigure(
            name=name,
            label=_LATENT_LABELS.get(name) or METRICS[name].label,
            measured=measured.get(name),
            spread=spreads.get(name),
            num_images=evaluation.num_images,
            expected=expected.get(name),
        )
        for name in names
    ]


_ON_FEATURES = ("fid", "is", "precision_recall", "kid")

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`with progress("measure", total) as advance: advance(count)`."""


@dataclass(frozen=True)
class ShownImage:
    """An image for people to look at: where it stands among the others, and what came out (reconstructions only)."""

    name: str
    standing: str
    original: Tensor
    reconstruction: Tensor | None = None
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        subject: what was measured, in words.
        settings: the whole recipe, and the fingerprint of the network.
        scores: in the order they were asked for.
        num_images: how many were measured.
        damaged: a line for each image that could not be decoded.
        warnings: what keeps the scores from being compared with published ones.
        latent: statistics of the latents, for an autoencoder.
        names: of the measured images, where each has values of its own.
        values: "psnr", "ssim", "lpips" -> one number for each of `names`.
        shown: images for the report.
    """

    subject: str
    settings: dict[str, Any]
    scores: list[Score]
    num_images: int
    damaged: list[str]
    warnings: list[str]
    latent: LatentStatistics | None
    names: list[str]
    values: dict[str, list[float]]
    shown: list[ShownImage]

    def measured(self) -> dict[str, float]:
        """Every figure by name: the scores, and the latents' mean, rms and std."""
        figures = {score.name: score.value for score in self.scores}
        if self.latent is not None:
            figures |= {f"latent_{name}": getattr(self.latent, name) for name in ("mean", "rms", "std")}
        return figures

    def origins(self) -> list[str]:
        """By which rules each score was measured, and what it depends on: a line each."""
        return [score.origin() for score in self.scores]

    def to_dict(self) -> dict[str, Any]:
        """All but the images, for JSON; what is infinite (PSNR of equal images) becomes null."""
        document = {
            "subject": self.subject,
            "settings": self.settings,
            "num_images": self.num_images,
            "scores": {score.name: score.to_dict() for score in self.scores},
            "latent": None if self.latent is None else asdict(self.latent),
            "images": self.names,
            "per_image": self.values,
            "damaged": self.damaged,
            "warnings": self.warnings,
        }
        return _without_infinities(document)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Plan:
    """What is measured on which images, once everything is loaded."""

    subject: str
    source: ImageSource
    measure: Measure
    identity: dict[str, Any]
    show: Callable[[Tensor], Tensor] | None = None
    notes: list[str] = field(default_factory=list)


def no_progress(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """For callers without a screen."""
    return nullcontext(lambda count: None)


def evaluate(
    recipe: EvaluateRecipe,
    *,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    num_shown: int = 0,
    progress: Progress = no_progress,
) -> Evaluation | None:
    """Measure what a recipe says.

    Processes of one group share the images. Finished parts lie in a directory of their own until the end, so a
    stopped evaluation goes on where it was; that costs 8 KB of disk an image for each set of Inception features.

    Args:
        recipe: what to measure.
        device: where networks run.
        work: where finished parts are kept; None: the user's cache.
        num_shown: how many images to keep for a report, from the best, the middle and the worst each.
        progress: shows how far it is.

    Returns:
        The evaluation in the main process, None in the others.

    Raises:
        DataError: images or the reference are missing, damaged, or do not fit.
        UsageError: an unknown model, or a resolution that does not fit it.
        DownloadError: weights are neither cached nor to be had.
        ResourceError: no room for the finished parts.
    """
    reference = None if recipe.reference is None else read_reference(Path(recipe.reference))
    extractor = _load_extractor(recipe, device)
    if reference is not None and extractor is not None:
        require_comparable(reference)
    needs_their_features = reference is not None and {"precision_recall", "kid"} & set(recipe.metrics)
    their_images = ReferenceImages(reference) if reference is not None and needs_their_features else None
    plan = _plan(recipe, device, extractor, reference)
    work = work or cache_directory("evaluations")
    key = evaluation_key(
        recipe=recipe.model_dump(exclude={"expected"}),
        reference=reference and reference.sha256,
        inception=extractor and extractor.sha256,
        device=torch.device(device).type,
        identity=plan.identity,
    )
    # Copies of the images on several machines may differ in their times: the main process's key counts.
    key = broadcast_object(key)
    store = PartStore(work / key)
    gathered = _run(plan.source, plan.measure, store, recipe, progress, "measure")
    their_store, theirs = PartStore(work / f"{key}-reference"), None
    if their_images is not None and extractor is not None:
        measure = FeatureMeasurement(extractor)
        theirs = _run(their_images, measure, their_store, recipe, progress, "measure the reference")
    if gathered is None:
        return None
    comparison = None
    if reference is not None:
        comparison = compare_with_reference(reference, None if theirs is None else theirs.columns[FEATURES])
    evaluation = _conclude(recipe, plan, gathered, comparison, reference, extractor, num_shown)
    store.remove()
    their_store.remove()
    return evaluation


def _run(
    source: ImageSource,
    measure: Measure,
    store: PartStore,
    recipe: EvaluateRecipe,
    progress: Progress,
    description: str,
) -> Gathered | None:
    with progress(description, len(source)) as advance:
        parts = measure_parts(source, measure, store, recipe.batch_size, advance)
    return None if parts is None else gather(parts, recipe.metrics)


def _load_extractor(recipe: EvaluateRecipe, device: torch.device | str) -> InceptionExtractor | None:
    if not set(_ON_FEATURES) & set(recipe.metrics):
        return None
    weights = None if recipe.inception_weights is None else Path(recipe.inception_weights)
    return load_inception(weights, device=device)


def _plan(
    recipe: EvaluateRecipe,
    device: torch.device | str,
    extractor: InceptionExtractor | None,
    reference: Reference | None,
) -> _Plan:
    with_logits = "is" in recipe.metrics
    features = None if extractor is None else FeatureMeasurement(extractor, with_logits=with_logits)
    if recipe.autoencoder is not None:
        return _plan_autoencoder(recipe, device, features, reference)
    assert features is not None  # the recipe's own check: only autoencoders have other metrics
    if recipe.diffusion is not None:
        return _plan_diffusion(recipe, device, features)
    assert recipe.generated is not None
    images, notes = find_once([recipe.generated])
    source = ImageFiles(images, recipe.resolution, recipe.damaged == "skip")
    return _Plan(f"images in {recipe.generated}", source, features, {"images": identity_of(images)}, notes=notes)


def _plan_autoencoder(
    recipe: EvaluateRecipe,
    device: torch.device | str,
    features: FeatureMeasurement | None,
    reference: Reference | None,
) -> _Plan:
    assert recipe.autoencoder is not None
    images, notes = find_once([recipe.images or str(sample_pack_directory())])
    if recipe.num_images is not None:
        images = images[: recipe.num_images]
    source = ImageFiles(images, recipe.resolution, recipe.damaged == "skip")
    lpips = load_lpips("alex", device=device) if "lpips" in recipe.metrics else None
    plain = load_autoencoder(recipe.autoencoder.model, prepare=False)
    identity = {"images": identity_of(images), "network": fingerprint(plain)}
    network = prepare_for_inference(plain.to(device, parse_dtype(recipe.autoencoder.dtype)))
    measure = ReconstructionMeasurement(
        network, recipe.metrics, lpips=lpips, features=features, with_original_features=reference is None
    )
    subject = f"autoencoder {recipe.autoencoder.model or EMBEDDED_AUTOENCODER}"
    return _Plan(subject, source, measure, identity, lambda u8: measure.reconstruct(u8)[0].cpu(), notes)


def _plan_diffusion(recipe: EvaluateRecipe, device: torch.device | str, features: FeatureMeasurement) -> _Plan:
    subject = recipe.diffusion
    assert subject is not None
    settings = SampleSettings(subject.guidance_scale, subject.seed, subject.sampler, subject.num_steps)
    files = locate_diffusion(subject.model)
    settings.check(files.prediction, files.config)
    pipeline = DiffusionPipeline.load(
        files, device=device, dtype=parse_dtype(subject.dtype), autoencoder=subject.autoencoder
    )
    source = GeneratedSamples(pipeline, subject.num, settings, recipe.batch_size)
    networks = {"network": fingerprint(pipeline.denoiser), "autoencoder": fingerprint(pipeline.autoencoder)}
    return _Plan(f"diffusion model {files.name}", source, features, networks)


def _conclude(
    recipe: EvaluateRecipe,
    plan: _Plan,
    gathered: Gathered,
    comparison: Comparison | None,
    reference: Reference | None,
    extractor: InceptionExtractor | None,
    num_shown: int,
) -> Evaluation:
    if gathered.count == 0:
        raise DataError(f"not one of {len(plan.source)} images can be decoded; the first says: {gathered.damaged[0]}")
    if comparison is None and extractor is not None and plan.show is not None:
        comparison = compare_with_originals(gathered)
    sha256 = extractor.sha256 if extractor else None
    scores = compute_scores(gathered, recipe.metrics, sha256, comparison)
    values = {name: gathered.columns[name].tolist() for name in PER_IMAGE if name in gathered.columns}
    network = {key: value for key, value in plan.identity.items() if key != "images"}
    return Evaluation(
        subject=plan.subject,
        settings=recipe.model_dump(exclude_none=True, exclude={"expected"}) | network,
        scores=scores,
        num_images=gathered.count,
        damaged=gathered.damaged,
        warnings=plan.notes + warnings_about(scores, reference, sha256),
        latent=gathered.latent,
        names=[plan.source.name(index) for index in gathered.indices] if values else [],
        values=values,
        shown=_choose_shown(plan, gathered, values, num_shown),
    )


def _choose_shown(plan: _Plan, gathered: Gathered, values: dict[str, list[float]], num_shown: int) -> list[ShownImage]:
    """Best, middle and worst by the first per-image metric; the first images where there is none."""
    if num_shown == 0:
        return []
    if not values or plan.show is None:
        return [_show(plan, gathered, values, place, "sample") for place in range(min(4 * num_shown, gathered.count))]
    count = min(num_shown, max(1, gathered.count // 3))
    metric = "lpips" if "lpips" in values else next(iter(values))
    sign = 1 if metric == "lpips" else -1
    order = sorted(range(gathered.count), key=lambda place: sign * values[metric][place])
    middle = (gathered.count - count) // 2
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    seen: set[int] = set()
    shown = []
    for standing, places in groups.items():
        for place in places:
            if place not in seen:
                seen.add(place)
                shown.append(_show(plan, gathered, values, place, standing))
    return shown


def _show(plan: _Plan, gathered: Gathered, values: dict[str, list[float]], place: int, standing: str) -> ShownImage:
    index = gathered.indices[place]
    batch = next(iter(plan.source.batches([range(index, index + 1)])))
    return ShownImage(
        name=plan.source.name(index),
        standing=standing,
        original=batch.images[0],
        reconstruction=plan.show(batch.images)[0] if plan.show else None,
        values={name: column[place] for name, column in values.items()},
    )
