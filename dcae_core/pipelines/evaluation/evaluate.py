"""Evaluating an autoencoder, a diffusion model or a folder of samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.checkpoints.training_runs import model_name
from dcae_core.data.images import describe_crop, describe_enlarged
from dcae_core.devices import allow_tf32, parse_dtype
from dcae_core.distributed import broadcast_object
from dcae_core.files import cache_directory
from dcae_core.metrics.inception import InceptionExtractor, ResizeRule, load_inception
from dcae_core.metrics.lpips import load_lpips
from dcae_core.metrics.reference import Reference, read_reference
from dcae_core.models.inference import prepare_for_inference
from dcae_core.pipelines.encode import encoder_name
from dcae_core.pipelines.evaluation import inputs
from dcae_core.pipelines.evaluation.comparability import require_comparable, warnings_about
from dcae_core.pipelines.evaluation.parts import (
    ORIGINAL,
    EmbeddedFeatureMeasurement,
    FeatureMeasurement,
    Measure,
    PartStore,
    ReconstructionMeasurement,
    evaluation_key,
    measure_parts,
    measure_together,
)
from dcae_core.pipelines.evaluation.scores import (
    PER_IMAGE,
    Evaluation,
    Gathered,
    ShownImage,
    compare_with_images,
    compare_with_reference,
    compute_scores,
    gather,
)
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
from dcae_core.progress import OpenProgress, no_progress
from dcae_core.recipes.evaluate import EvaluateRecipe
from dcae_core.weights import fingerprint

_ON_FEATURES = ("fid", "is", "precision_recall", "kid")


@dataclass(frozen=True)
class _Plan:
    """What is measured on which images, once everything is loaded."""

    subject: str
    source: inputs.ImageSource
    measure: Measure
    identity: dict[str, Any]
    show: Callable[[Tensor], Tensor] | None = None
    has_files: bool = True
    notes: list[str] = field(default_factory=list)


def evaluate(
    recipe: EvaluateRecipe,
    *,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    num_shown: int = 0,
    progress: OpenProgress = no_progress,
    publish: Callable[[Evaluation], None] = lambda _: None,
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
        publish: given the result before the finished parts are thrown away; where it fails they stay.

    Returns:
        The evaluation in the main process, None in the others.

    Raises:
        DataError: images or the reference are missing, damaged, or do not fit.
        UsageError: an unknown model, or a resolution that does not fit it.
        DownloadError: weights are neither cached nor to be had.
        ResourceError: no room for the finished parts.
        UsageError: the same evaluation is running already.
    """
    with allow_tf32(recipe.execution.tf32):
        return _evaluate(recipe, device, work, num_shown, progress, publish)


def _evaluate(
    recipe: EvaluateRecipe,
    device: torch.device | str,
    work: Path | None,
    num_shown: int,
    progress: OpenProgress,
    publish: Callable[[Evaluation], None],
) -> Evaluation | None:
    reference = None
    if recipe.reference is not None and not inputs.names_images(recipe.reference):
        reference = read_reference(Path(recipe.reference))
    with progress("loading the weights of Inception", 0):
        extractor = _load_extractor(recipe, device)
    if reference is not None and extractor is not None:
        require_comparable(reference)
    resize: ResizeRule = recipe.resize or (reference.resize if reference is not None else "half_pixel")
    with progress("loading the weights", 0):
        plan = _plan(recipe, device, extractor, resize)
    their_images, identity_of_theirs = _their_images(recipe, reference, plan.source.size)
    key = evaluation_key(
        recipe=recipe.model_dump(exclude={"expected"}),
        reference=reference.sha256 if reference is not None else identity_of_theirs,
        inception=extractor and extractor.sha256,
        device=torch.device(device).type,
        identity=plan.identity,
    )
    # Copies of the images on several machines may differ in their times: the main process's key counts.
    place = (work or cache_directory("evaluations")) / broadcast_object(key)
    store, their_store = PartStore(place), PartStore(place.with_name(f"{place.name}-reference"))
    with store.held(), their_store.held():
        gathered, theirs = _run(plan.source, plan.measure, store, recipe, progress, "measure"), None
        if their_images is not None:
            measure = _feature_measure(recipe, device, extractor, resize)
            assert measure is not None
            theirs = _run(their_images, measure, their_store, recipe, progress, "measure the reference")
        if gathered is None:
            return None
        evaluation = _conclude(recipe, plan, gathered, theirs, reference, extractor, resize, num_shown)
        publish(evaluation)
    return evaluation


def _run(
    source: inputs.ImageSource,
    measure: Measure,
    store: PartStore,
    recipe: EvaluateRecipe,
    progress: OpenProgress,
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


def _their_images(
    recipe: EvaluateRecipe, reference: Reference | None, size: tuple[int, int]
) -> tuple[inputs.ImageSource | None, Any]:
    """What the measured images are compared with where statistics do not do, and what changes when it changes.

    Raises:
        DataError: there are none, or statistics alone where images are needed.
    """
    if reference is not None:
        if set(recipe.metrics) & {"precision_recall", "kid", "frechet"}:
            return inputs.ReferenceImages(reference), None
        return None, None
    if recipe.reference is None:
        return None, None
    images, _ = inputs.find_once([recipe.reference])
    side = recipe.resolution or (size[0] if size[0] == size[1] else None)
    return inputs.ImageFiles(images, side, recipe.damaged == "skip", recipe.alpha), inputs.identity_of(images)


def _feature_measure(
    recipe: EvaluateRecipe, device: torch.device | str, extractor: InceptionExtractor | None, resize: ResizeRule
) -> Measure | None:
    """The features that the metrics are on; None where none is."""
    measures: list[Measure] = []
    if extractor is not None:
        measures.append(FeatureMeasurement(extractor, with_logits="is" in recipe.metrics, resize=resize))
    if "frechet" in recipe.metrics:
        measures.append(EmbeddedFeatureMeasurement(device))
    return measure_together(measures) if measures else None


def _plan(
    recipe: EvaluateRecipe, device: torch.device | str, extractor: InceptionExtractor | None, resize: ResizeRule
) -> _Plan:
    features = _feature_measure(recipe, device, extractor, resize)
    if recipe.autoencoder is not None:
        return _plan_autoencoder(recipe, device, features)
    assert features is not None  # the recipe's own check: only autoencoders have other metrics
    if recipe.diffusion is not None:
        return _plan_diffusion(recipe, device, features)
    assert recipe.generated is not None
    images, notes = inputs.find_once([recipe.generated])
    source = inputs.ImageFiles(images, recipe.resolution, recipe.damaged == "skip", recipe.alpha)
    return _Plan(f"images in {recipe.generated}", source, features, {"images": inputs.identity_of(images)}, notes=notes)


def _plan_autoencoder(recipe: EvaluateRecipe, device: torch.device | str, features: Measure | None) -> _Plan:
    assert recipe.autoencoder is not None
    images, notes = inputs.find_once([recipe.images or str(inputs.sample_pack_directory())])
    if recipe.num_images is not None:
        images = images[: recipe.num_images]
    source = inputs.ImageFiles(images, recipe.resolution, recipe.damaged == "skip", recipe.alpha)
    lpips = load_lpips("alex", device=device) if "lpips" in recipe.metrics else None
    plain = load_autoencoder(recipe.autoencoder.model, prepare=False)
    identity = {"images": inputs.identity_of(images), "network": fingerprint(plain)}
    network = prepare_for_inference(plain.to(device, parse_dtype(recipe.autoencoder.dtype)))
    measure = ReconstructionMeasurement(
        network, recipe.metrics, lpips=lpips, features=features, with_original_features=recipe.reference is None
    )
    subject = f"autoencoder {encoder_name(recipe.autoencoder.model)}"
    return _Plan(subject, source, measure, identity, lambda u8: measure.reconstruct(u8)[0].cpu(), notes=notes)


def _plan_diffusion(recipe: EvaluateRecipe, device: torch.device | str, features: Measure) -> _Plan:
    subject = recipe.diffusion
    assert subject is not None
    settings = SampleSettings(subject.guidance_scale, subject.seed, subject.sampler, subject.num_steps)
    files = locate_diffusion(subject.model)
    settings.check(files.prediction, files.config)
    dtype = parse_dtype(subject.dtype)
    parts = read_diffusion(files, autoencoder=subject.autoencoder, device=device, dtype=dtype)
    pipeline = DiffusionPipeline(parts)
    name = model_name(files.where) if files.where.is_dir() else files.name
    source = inputs.GeneratedSamples(pipeline, subject.num, settings, recipe.batch_size)
    networks = {"network": fingerprint(pipeline.denoiser), "autoencoder": fingerprint(pipeline.autoencoder)}
    return _Plan(f"diffusion model {name}", source, features, networks, notes=list(parts.warnings), has_files=False)


def _conclude(
    recipe: EvaluateRecipe,
    plan: _Plan,
    gathered: Gathered,
    theirs: Gathered | None,
    reference: Reference | None,
    extractor: InceptionExtractor | None,
    resize: ResizeRule,
    num_shown: int,
) -> Evaluation:
    comparison = None
    if reference is not None:
        comparison = compare_with_reference(reference, theirs, resize)
    elif theirs is not None:
        comparison = compare_with_images(f"{theirs.count} images in {recipe.reference}", theirs, resize=resize)
    elif plan.show is not None:
        comparison = compare_with_images(f"the {gathered.count} originals", gathered, ORIGINAL, resize)
    enlarged = []
    if gathered.num_enlarged and recipe.resolution is not None:
        enlarged = [describe_enlarged(gathered.num_enlarged, gathered.count, recipe.resolution)]
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
        crop=f"{describe_crop(recipe.resolution)}; not turned by EXIF" if plan.has_files else None,
        warnings=plan.notes + enlarged + warnings_about(scores, reference, sha256, plan.source.size, resize),
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
