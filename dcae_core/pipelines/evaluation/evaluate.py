"""Evaluating an autoencoder, a diffusion model or a folder of samples."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcae_core.checkpoints.vision_encoders import load_clip_vision, load_vision_encoder
from dcae_core.data.content import digest_of_images
from dcae_core.data.images import describe_crop, describe_enlarged
from dcae_core.data.remote import is_url
from dcae_core.devices import allow_tf32
from dcae_core.distributed import broadcast_object, is_main
from dcae_core.errors import DataError
from dcae_core.files import cache_directory
from dcae_core.metrics.inception import InceptionExtractor, ResizeRule, load_inception
from dcae_core.metrics.reference import Reference, read_reference
from dcae_core.pipelines.encode import encoder_name
from dcae_core.pipelines.evaluation import inputs
from dcae_core.pipelines.evaluation.comparability import require_comparable, warnings_about
from dcae_core.pipelines.evaluation.parts import (
    ORIGINAL,
    EmbeddedFeatureMeasurement,
    FeatureMeasurement,
    Measure,
    PartStore,
    evaluation_key,
    measure_parts,
    measure_together,
)
from dcae_core.pipelines.evaluation.plans import Plan, plans_of
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
from dcae_core.pipelines.evaluation.vision_features import ClipMeasurement, DinoV2Measurement
from dcae_core.progress import OpenProgress, no_progress
from dcae_core.recipes.evaluate import EvaluateRecipe

_ON_FEATURES = ("fid", "sfid", "is", "precision_recall", "kid")


@dataclass(frozen=True)
class _FeatureNetworks:
    """The networks whose features the metrics compare; None where no metric asks for one."""

    inception: InceptionExtractor | None
    embedded: EmbeddedFeatureMeasurement | None
    dinov2: DinoV2Measurement | None
    clip: ClipMeasurement | None
    resize: ResizeRule
    with_spatial: bool

    @property
    def sha256(self) -> str | None:
        """Of the Inception weights."""
        return self.inception.sha256 if self.inception else None

    @property
    def names(self) -> dict[str, str]:
        """Of the networks of single metrics, with their fingerprints."""
        by_metric = {"fd_dinov2": self.dinov2, "cmmd": self.clip}
        return {metric: measurement.name for metric, measurement in by_metric.items() if measurement is not None}

    def measure(self, *, with_logits: bool) -> Measure | None:
        """All features that are asked for; None where none are."""
        measures: list[Measure] = []
        if self.inception is not None:
            measures.append(
                FeatureMeasurement(
                    self.inception, with_logits=with_logits, with_spatial=self.with_spatial, resize=self.resize
                )
            )
        measures += [each for each in (self.embedded, self.dinov2, self.clip) if each is not None]
        return measure_together(measures) if measures else None


def evaluate(
    recipe: EvaluateRecipe,
    *,
    device: torch.device | str = "cpu",
    work: Path | None = None,
    num_shown: int = 0,
    progress: OpenProgress = no_progress,
    note: Callable[[str], None] = lambda _: None,
    publish: Callable[[list[Evaluation]], None] = lambda _: None,
) -> list[Evaluation]:
    """Measure what a recipe says, at each of its guidance scales.

    Networks and reference serve all scales, and sample i begins with the same noise at each. Processes of one group
    share the images. Finished parts lie in directories of their own until the end, so a stopped evaluation goes on
    where it was; that costs 8 KB of disk an image for each set of Inception features. What was measured on the images
    of a reference stays in the user's cache for the next evaluation.

    Args:
        recipe: what to measure.
        device: where networks run.
        work: where finished parts are kept; None: the user's cache.
        num_shown: how many images to keep for a report, from the best, the middle and the worst each.
        progress: shows how far it is.
        note: told where something has not to be measured.
        publish: given the result before the finished parts are thrown away; where it fails they stay.

    Returns:
        In the main process one evaluation, or one for each guidance scale, in their order; nothing in the others.

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
    publish: Callable[[list[Evaluation]], None],
) -> list[Evaluation]:
    reference = None
    if recipe.reference is not None and not inputs.names_images(recipe.reference):
        reference = read_reference(Path(recipe.reference))
    with progress("loading the weights of Inception", 0):
        inception = _load_inception(recipe, device)
    if reference is not None and inception is not None:
        require_comparable(reference, recipe.metrics)
    with progress("loading the weights", 0):
        networks = _FeatureNetworks(
            inception,
            EmbeddedFeatureMeasurement(device) if "frechet" in recipe.metrics else None,
            _load_dinov2(recipe, device),
            _load_clip(recipe, device),
            recipe.resize or (reference.resize if reference is not None else "half_pixel"),
            "sfid" in recipe.metrics,
        )
        plans = plans_of(recipe, device, networks.measure(with_logits="is" in recipe.metrics))
    their_images, identity_of_theirs = _their_images(recipe, reference, plans[0].source.size, note)
    places = [
        _place_of_parts(plan, work, device, networks, reference.sha256 if reference else identity_of_theirs)
        for plan in plans
    ]
    stores, evaluations = [PartStore(place) for place in places], []
    with ExitStack() as held:
        for store in stores:
            held.enter_context(store.held())  # all of them until all are measured: a stop loses nothing
        theirs = None
        if their_images is not None:
            cache = _reference_cache(recipe, networks, their_images, identity_of_theirs, device)
            their_place = places[0].with_name(f"{places[0].name}-reference")
            theirs = _measure_theirs(their_images, networks, cache, their_place, recipe, progress, note)
        for plan, store in zip(plans, stores, strict=True):
            gathered = _run(plan.source, plan.measure, store, plan.recipe, progress, _doing(plan, len(plans)))
            if gathered is not None:
                evaluations.append(_conclude(plan, gathered, theirs, reference, networks, num_shown))
        if is_main():
            publish(evaluations)
    return evaluations


def _place_of_parts(
    plan: Plan, work: Path | None, device: torch.device | str, networks: _FeatureNetworks, reference: Any
) -> Path:
    """Where finished parts lie; `reference`: what changes when that does."""
    key = evaluation_key(
        recipe=plan.recipe.model_dump(exclude={"expected"}),
        reference=reference,
        inception=networks.sha256,
        networks=networks.names,
        device=torch.device(device).type,
        identity=plan.identity,
    )
    # Copies of the images on several machines may differ in their times: the main process's key counts.
    return (work or cache_directory("evaluations")) / broadcast_object(key)


def _doing(plan: Plan, num_plans: int) -> str:
    diffusion = plan.recipe.diffusion
    return "measure" if num_plans == 1 or diffusion is None else f"measure at guidance {diffusion.guidance_scale:g}"


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
        networks=networks.names,
        features=keeps_features(recipe.metrics),
        spatial=networks.with_spatial,
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


def _load_dinov2(recipe: EvaluateRecipe, device: torch.device | str) -> DinoV2Measurement | None:
    if "fd_dinov2" not in recipe.metrics:
        return None
    return DinoV2Measurement(load_vision_encoder(recipe.dinov2, device), encoder_name(recipe.dinov2))


def _load_clip(recipe: EvaluateRecipe, device: torch.device | str) -> ClipMeasurement | None:
    if "cmmd" not in recipe.metrics:
        return None
    return ClipMeasurement(load_clip_vision(recipe.clip, device), encoder_name(recipe.clip))


def _their_images(
    recipe: EvaluateRecipe, reference: Reference | None, size: tuple[int, int], note: Callable[[str], None]
) -> tuple[inputs.ImageSource | None, Any]:
    """What the measured images are compared with where statistics do not do, and what changes when it changes.

    Raises:
        DataError: there are none, or statistics alone where images are needed.
    """
    if reference is not None:
        on_images = {"precision_recall", "kid", "fd_dinov2", "cmmd", "frechet"}
        if reference.spatial is None:
            on_images.add("sfid")
        if on_images & set(recipe.metrics):
            return inputs.ReferenceImages(reference), reference.sha256
        return None, None
    if recipe.reference is None:
        return None, None
    images, damaged, _ = inputs.find_once([recipe.reference], recipe.damaged == "skip")
    for line in damaged if is_main() else ():
        note(f"left out of the reference: {line}")
    if len(images) < 2:
        raise DataError(f"{recipe.reference} holds one image; a reference needs two or more, better hundreds")
    side = recipe.resolution or (size[0] if size[0] == size[1] else None)
    note(f"images of the reference: {describe_crop(side)}")
    is_remote = any(is_url(image.path) for image in images)
    identity = {"crop": side, "files": digest_of_images(images) if is_remote else inputs.identity_of(images)}
    return inputs.ImageFiles(images, side, recipe.damaged == "skip", recipe.alpha), identity


def _conclude(
    plan: Plan,
    gathered: Gathered,
    theirs: Comparison | None,
    reference: Reference | None,
    networks: _FeatureNetworks,
    num_shown: int,
) -> Evaluation:
    recipe, comparison, resize, sha256 = plan.recipe, None, networks.resize, networks.sha256
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
    scores = compute_scores(gathered, recipe.metrics, sha256, comparison, networks.names)
    values = {name: gathered.columns[name].tolist() for name in PER_IMAGE if name in gathered.columns}
    network = {key: value for key, value in plan.identity.items() if key != "images"}
    shown, changed = _choose_shown(plan, gathered, values, num_shown)
    return Evaluation(
        subject=plan.subject,
        settings=recipe.model_dump(exclude_none=True, exclude={"expected"}) | network,
        scores=scores,
        num_images=gathered.count,
        damaged=plan.damaged + gathered.damaged,
        crop=f"{describe_crop(recipe.resolution)}; not turned by EXIF" if plan.has_files else None,
        warnings=plan.notes
        + enlarged
        + [f"not among the images of the report, since it has changed after it was measured: {why}" for why in changed]
        + warnings_about(scores, reference, num_compared, sha256, plan.source.size, resize),
        latent=gathered.latent,
        names=[plan.source.name(index) for index in gathered.indices] if values else [],
        values=values,
        shown=shown,
    )


def _choose_shown(
    plan: Plan, gathered: Gathered, values: dict[str, list[float]], num_shown: int
) -> tuple[list[ShownImage], list[str]]:
    """Best, middle and worst by the first per-image metric; the first images where there is none.

    They are read again for that: the second list says why some cannot be.
    """
    standings = _standings(plan, gathered, values, num_shown)
    looked_at = [_show(plan, gathered, values, place, standing) for place, standing in standings.items()]
    shown = [one for one in looked_at if isinstance(one, ShownImage)]
    return shown, [one for one in looked_at if isinstance(one, str)]


def _standings(plan: Plan, gathered: Gathered, values: dict[str, list[float]], num_shown: int) -> dict[int, str]:
    """Which images are shown, by their places, and as what."""
    if num_shown == 0:
        return {}
    if not values or plan.show is None:
        return dict.fromkeys(range(min(4 * num_shown, gathered.count)), "sample")
    count = min(num_shown, max(1, gathered.count // 3))
    metric = "lpips" if "lpips" in values else next(iter(values))
    sign = 1 if metric == "lpips" else -1
    order = sorted(range(gathered.count), key=lambda place: sign * values[metric][place])
    middle = (gathered.count - count) // 2
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    standings: dict[int, str] = {}
    for standing, places in groups.items():
        for place in places:
            standings.setdefault(place, standing)
    return standings


def _show(
    plan: Plan, gathered: Gathered, values: dict[str, list[float]], place: int, standing: str
) -> ShownImage | str:
    index = gathered.indices[place]
    batch = next(iter(plan.source.batches([range(index, index + 1)])))
    if batch.damaged:
        return batch.damaged[0]
    return ShownImage(
        name=plan.source.name(index),
        standing=standing,
        original=batch.images[0],
        reconstruction=plan.show(batch.images)[0] if plan.show else None,
        values={name: column[place] for name, column in values.items()},
    )
