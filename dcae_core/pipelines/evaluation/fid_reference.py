"""FID reference statistics of a set of images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dcae_core.data.images import AlphaRule
from dcae_core.distributed import broadcast_object
from dcae_core.files import cache_directory
from dcae_core.metrics.frechet import Gaussian
from dcae_core.metrics.inception import NUM_FEATURES, RESIZE_RULES, ResizeRule, load_inception
from dcae_core.pipelines.evaluation.comparability import IMAGE_SIZE, size_text
from dcae_core.pipelines.evaluation.inputs import ImageFiles, find_once, identity_of
from dcae_core.pipelines.evaluation.parts import (
    FeatureMeasurement,
    PartStore,
    evaluation_key,
    measure_parts,
)
from dcae_core.pipelines.evaluation.scores import Gathered, gather, gaussian_of
from dcae_core.progress import OpenProgress, no_progress


@dataclass(frozen=True)
class FidReference:
    """Statistics of features, and what a file should say about them.

    `description` has the number of images, resolution, transform, resize rule and hash of the weights; `warnings` are
    lines about damaged images, repeated ones, and too few.
    """

    gaussian: Gaussian
    description: dict[str, str | int]
    warnings: list[str]


def measure_reference(
    inputs: list[str],
    resolution: int | None,
    *,
    inception_weights: Path | None = None,
    batch_size: int = 16,
    skip_damaged: bool = True,
    alpha: AlphaRule = "white",
    resize: ResizeRule = "half_pixel",
    device: torch.device | str = "cpu",
    work: Path | None = None,
    progress: OpenProgress = no_progress,
    publish: Callable[[FidReference], None] = lambda _: None,
) -> FidReference | None:
    """Mean and covariance of the Inception features of images.

    Processes of one group share the images; a stopped run goes on where it was. Costs about 6 GMACs an image, and
    8 KB of disk an image until the end.

    Args:
        inputs: folders, globs, file lists, tar shards.
        resolution: side of the ADM centre crop; None takes images as they are, all of one size.
        inception_weights: a file of weights; None: the published one.
        batch_size: images at a time in each process.
        skip_damaged: leave damaged images out and list them, or fail at the first.
        alpha: what becomes of transparency: composed on white, or dropped as the published code does.
        resize: how images become Inception's input; the file says it, and `dcae eval` follows.
        device: where the network runs.
        work: where finished parts are kept; None: the user's cache.
        progress: shows how far it is.
        publish: given the result before the finished parts are thrown away; where it fails they stay.

    Returns:
        The statistics in the main process, None in the others.

    Raises:
        DataError: no images, fewer than two good ones, or of different sizes.
        DownloadError: the weights are neither cached nor to be had.
        UsageError: the same measurement is running already.
    """
    images, damaged, notes = find_once(inputs, skip_damaged)
    source = ImageFiles(images, resolution, skip_damaged, alpha)
    extractor = load_inception(inception_weights, device=device)
    key = evaluation_key(
        images=identity_of(images),
        resolution=resolution,
        alpha=alpha,
        resize=resize,
        batch_size=batch_size,
        inception=extractor.sha256,
        device=torch.device(device).type,
    )
    store = PartStore((work or cache_directory("evaluations")) / broadcast_object(key))
    with store.held():
        with progress("measure", len(source)) as advance:
            parts = measure_parts(source, FeatureMeasurement(extractor, resize=resize), store, batch_size, advance)
        if parts is None:
            return None
        gathered = gather(parts, ("fid",))
        gathered.damaged = damaged + gathered.damaged
        description = _describe(gathered, resolution, source.size, alpha, resize, extractor.sha256)
        reference = FidReference(gaussian_of(gathered), description, _warnings(gathered, notes))
        publish(reference)
    return reference


def _describe(
    gathered: Gathered,
    resolution: int | None,
    size: tuple[int, int],
    alpha: AlphaRule,
    resize: ResizeRule,
    inception_sha256: str,
) -> dict[str, str | int]:
    return {
        "num_images": gathered.count,
        "num_damaged": len(gathered.damaged),
        IMAGE_SIZE: size_text(size),
        "resolution": resolution or "as the files are",
        "transform": "ADM centre crop" if resolution else "none",
        "alpha": alpha,
        "resize": RESIZE_RULES[resize],
        "inception_sha256": inception_sha256,
    }


def _warnings(gathered: Gathered, notes: list[str]) -> list[str]:
    warnings = gathered.damaged + notes
    if gathered.count < NUM_FEATURES:
        warnings.append(f"{gathered.count} images are fewer than {NUM_FEATURES} features: the covariance is singular")
    return warnings
