"""Evaluating an autoencoder, a diffusion model or a folder of samples."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.autoguidance import read_weaker_network
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.data.content import digest_of_images
from dcae_core.data.images import describe_crop, describe_enlarged
from dcae_core.data.remote import is_url
from dcae_core.devices import allow_tf32, parse_dtype
from dcae_core.distributed import broadcast_object, is_main
from dcae_core.errors import DataError
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
from dcae_core.pipelines.evaluation.reference_cache import ReferenceCache
from dcae_core.pipelines.evaluation.scores import (
    PER_IMAGE,
    Comparison,
    Evaluation,
    Gathered,
    ShownImage,
    compare_with_images,
    compare_with_reference,
    compute_scores,
    gather,
    keeps_features,
)
from dcae_core.pipelines.generate import DiffusionPipeline, SampleSettings
from dcae_core.progress import OpenProgress, no_progress
from dcae_core.recipes.evaluate import EvaluateRecipe
from dcae_core.weights import fingerprint

_ON_FEATURES = ("fid", "is", "precision_recall", "kid")


@dataclass(frozen=True)
class _FeatureNetworks:
    """The networks whose features the metrics compare; None where no metric asks for one."""

    inception: InceptionExtractor | None
    embedded: EmbeddedFeatureMeasurement | None
    resize: ResizeRule

    @property
    def sha256(self) -> str | None:
        """Of the Inception weights."""
        return self.inception.sha256 if self.inception else None

    def measure(self, *, with_logits: bool) -> Measure | None:
        """All features that are asked for; None where none are."""
        measures: list[Measure] = []
        if self.inception is not None:
            measures.append(FeatureMeasurement(self.inception, with_logits=with_logits, resize=self.resize))
        if self.embedded is not None:
            measures.append(self.embedded)
        return measure_together(measures) if measures else None


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
    note: Callable[[str], None] = lambda _: None,
    publish: Callable[[Evaluation], None] = lambda _: None,
) -> Evaluation | None:
    """Measure what a recipe says.

    Processes of one group share the images. Finished parts lie in a directory of their own until the end, so a
    stopped evaluation goes on where it was; that costs 8 KB of disk an image for each set of Inception features. What
    was measured on the images of a reference stays in the user's cache for the next evaluation.

    Args:
        recipe: what to measure.
        device: where networks run.
        work: where finished parts are kept; None: the user's cache.
        num_shown: how many images to keep for a report, from the best, the middle and the worst each.
        progress: shows how far it is.
        note: told where something has not to be measured.
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
        return _evaluate(recipe, device, work, num_shown, progress, note, publish)


def _evaluate(
    recipe: EvaluateRecipe,
    device: torch.device | str,
    work: Path | None,
    num_shown: int,
    progress: OpenProgress,
    note: Callable[[str], None],
    publish: Callable[[Evaluation], None],
) -> Evaluation | None:
    reference = None
    if recipe.reference is not None and not inputs.names_images(recipe.reference):
        reference = read_reference(Path(recipe.reference))
    with progress("loading the weights of Inception", 0):
        inception = _load_inception(recipe, device)
    if reference is not None and inception is not None:
        require_comparable(reference)
    with progress("loading the weights", 0):
        embedded = EmbeddedFeatureMeasurement(device) if "frechet" in recipe.metrics else None
        resize: ResizeRule = recipe.resize or (reference.resize if reference is not None else "half_pixel")
        networks = _FeatureNetworks(inception, embedded, resize)
        plan = _plan(recipe, device, networks)
    their_images, identity_of_theirs = _their_images(recipe, reference, plan.source.size)
    key = evaluation_key(
        recipe=recipe.model_dump(exclude={"expected"}),
        reference=reference.sha256 if reference is not None else identity_of_theirs,
        inception=networks.sha256,
        device=torch.device(device).type,
        identity=plan.identity,
    )
    # Copies of the images on several machines may differ in their times: the main process's key counts.
    place = (work or cache_directory("evaluations")) / broadcast_object(key)
    store, their_store = PartStore(place), place.with_name(f"{place.name}-reference")
    with store.held():
        gathered, theirs = _run(plan.source, plan.measure, store, recipe, progress, "measure"), None
        if their_images is not None:
            cache = _reference_cache(recipe, networks, their_images, identity_of_theirs, device)
            theirs = _measure_theirs(their_images, networks, cache, their_store, recipe, progress, note)
        if gathered is None:
            return None
        evaluation = _conclude(recipe, plan, gathered, theirs, reference, networks, num_shown)
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


def _reference_cache(
    recipe: EvaluateRecipe,
    networks: _FeatureNetworks,
    images: inputs.ImageSource,
    identity: Any,
    device: torch.device | str,
) -> ReferenceCache:
    assert recipe.reference is not None
    return ReferenceCache(
        os.path.abspath(recipe.reference),
        identity,
        size=images.size,
        alpha=recipe.alpha,
        damaged=recipe.damaged,
        inception=networks.sha256,
        resize=networks.resize,
        embedded=networks.embedded and networks.embedded.fingerprint,
        features=keeps_features(recipe.metrics),
        batch_size=recipe.batch_size,
        tf32=recipe.execution.tf32,
        device=torch.device(device).type,
    )


def _measure_theirs(
    images: inputs.ImageSource,
    networks: _FeatureNetworks,
    cache: ReferenceCache,
    parts: Path,
    recipe: EvaluateRecipe,
    progress: OpenProgress,
    note: Callable[[str], None],
) -> Comparison | None:
    """What the images of a reference come to, in the main process: as an earlier evaluation left it, or measured."""
    kept = cache.load() if is_main() else None
    if kept is not None:
        note(f"reference of {kept.num_images} images from the cache")
    if broadcast_object(kept is not None):
        return kept
    store, measure = PartStore(parts), networks.measure(with_logits=False)
    assert measure is not None
    with store.held():
        gathered = _run(images, measure, store, recipe, progress, "measure the reference")
        if gathered is None:
            return None
        measured = compare_with_images("", gathered)
        cache.save(measured)
    return measured


def _load_inception(recipe: EvaluateRecipe, device: torch.device | str) -> InceptionExtractor | None:
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
            return inputs.ReferenceImages(reference), reference.sha256
        return None, None
    if recipe.reference is None:
        return None, None
    images, _ = inputs.find_once([recipe.reference])
    if len(images) < 2:
        raise DataError(f"{recipe.reference} holds one image; a reference needs two or more, better hundreds")
    side = recipe.resolution or (size[0] if size[0] == size[1] else None)
    is_remote = any(is_url(image.path) for image in images)
    identity = {"crop": side, "files": digest_of_images(images) if is_remote else inputs.identity_of(images)}
    return inputs.ImageFiles(images, side, recipe.damaged == "skip", recipe.alpha), identity


def _plan(recipe: EvaluateRecipe, device: torch.device | str, networks: _FeatureNetworks) -> _Plan:
    features = networks.measure(with_logits="is" in recipe.metrics)
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
    low, high = subject.guidance_interval or (0.0, 1.0)
    interval = None if subject.guidance_interval is None else (low, high)
    settings = SampleSettings(subject.guidance_scale, subject.seed, subject.sampler, subject.num_steps, interval)
    files = locate_diffusion(subject.model)
    settings.check(files.prediction, files.config, autoguided=subject.autoguidance is not None)
    dtype = parse_dtype(subject.dtype)
    weaker = None
    if subject.autoguidance is not None:
        weaker = read_weaker_network(locate_diffusion(subject.autoguidance), files, device, dtype)
    parts = read_diffusion(files, autoencoder=subject.autoencoder, device=device, dtype=dtype)
    pipeline = DiffusionPipeline(parts, weaker)
    source = inputs.GeneratedSamples(pipeline, subject.num, settings, recipe.batch_size)
    networks = {"network": fingerprint(pipeline.denoiser), "autoencoder": fingerprint(pipeline.autoencoder)}
    if weaker is not None:
        networks["autoguidance"] = fingerprint(weaker)
    return _Plan(
        f"diffusion model {files.name}", source, features, networks, notes=list(parts.warnings), has_files=False
    )


def _conclude(
    recipe: EvaluateRecipe,
    plan: _Plan,
    gathered: Gathered,
    theirs: Comparison | None,
    reference: Reference | None,
    networks: _FeatureNetworks,
    num_shown: int,
) -> Evaluation:
    comparison, resize, sha256 = None, networks.resize, networks.sha256
    if reference is not None:
        comparison = compare_with_reference(reference, theirs, resize)
    elif theirs is not None:
        comparison = replace(theirs, name=f"{theirs.num_images} images in {recipe.reference}", resize=resize)
    elif plan.show is not None:
        comparison = compare_with_images(f"the {gathered.count} originals", gathered, ORIGINAL, resize)
    enlarged = []
    if gathered.num_enlarged and recipe.resolution is not None:
        enlarged = [describe_enlarged(gathered.num_enlarged, gathered.count, recipe.resolution)]
    num_compared = 0 if comparison is None else comparison.num_images
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
        warnings=plan.notes
        + enlarged
        + warnings_about(scores, reference, num_compared, sha256, plan.source.size, resize),
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
