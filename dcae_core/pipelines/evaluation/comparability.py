"""What keeps scores from being compared with others."""

from collections.abc import Collection, Iterable

from dcae_core.errors import DataError
from dcae_core.metrics.inception import NUM_FEATURES, NUM_SPATIAL_FEATURES, ResizeRule
from dcae_core.metrics.reference import Reference
from dcae_core.pipelines.evaluation.scores import Score

_USUAL_NUMBER = 50_000
_FEW_FOR_OURS = 640  # ten for each of its 64 features
IMAGE_SIZE = "image_size"  # of the description of a reference


def size_text(size: tuple[int, int]) -> str:
    """A (width, height) in words."""
    return f"{size[0]}x{size[1]}"


def _recorded_size(reference: Reference) -> str | None:
    side = reference.description.get("resolution")
    return (
        str(reference.description.get(IMAGE_SIZE) or (size_text((side, side)) if isinstance(side, int) else "")) or None
    )


def warnings_about(
    scores: Iterable[Score],
    reference: Reference | None,
    num_compared: int,
    inception_sha256: str | None,
    size: tuple[int, int],
    resize: ResizeRule,
) -> list[str]:
    """What keeps the scores from being compared with others, a line each; `num_compared`: images of the other side."""
    scores, lines = list(scores), []
    counts = [score.num_images for score in scores if score.inception_sha256 or score.name == "fd_dinov2"]
    if counts and counts[0] < NUM_FEATURES:
        lines.append(
            f"FID and its kin are over {counts[0]} images only: fewer than {NUM_FEATURES} features leave the "
            "covariance singular and the value far too large; compare it with nothing but the same number of images"
        )
    elif counts and counts[0] < _USUAL_NUMBER:
        lines.append(
            f"FID and its kin are over {counts[0]} images; published figures are over {_USUAL_NUMBER}, "
            "and with fewer the value is larger"
        )
    ours = next((score.num_images for score in scores if score.name == "frechet"), None)
    if ours is not None and min(ours, num_compared) < _FEW_FOR_OURS:
        lines.append(
            f"the Fréchet distance is of {ours} images from {num_compared} only; compare it with one of as many from "
            "the same"
        )
    if reference is not None and inception_sha256 is not None and reference.resize != resize:
        lines.append(
            f"the images of {reference.path.name} were resized by the rule {reference.resize}, these by {resize}: the "
            "FID is off by a percent or two; leave --resize out to take the reference's rule"
        )
    if reference is not None and inception_sha256 is not None:
        recorded = reference.description.get("inception_sha256")
        if recorded not in (None, inception_sha256):
            lines.append(
                f"{reference.path.name} was made with other Inception weights ({str(recorded)[:8]}...) than these "
                f"({inception_sha256[:8]}...): the FID means nothing"
            )
        if _recorded_size(reference) not in (None, size_text(size)):
            lines.append(
                f"{reference.path.name} was made of images of {_recorded_size(reference)}, these are of "
                f"{size_text(size)}: the FID means nothing; make one with dcae fid-ref --resolution {min(size)}"
            )
    return lines


def require_comparable(reference: Reference, metrics: Collection[str]) -> None:
    """Refuse a reference of other features, or without what a metric needs, before anything is computed.

    Raises:
        DataError: its dimension is not 2048; or for sFID, it has neither 2023 spatial features nor images.
    """
    if reference.gaussian.mean.size != NUM_FEATURES:
        raise DataError(
            f"{reference.path} holds statistics of {reference.gaussian.mean.size} features, expected {NUM_FEATURES}: "
            "make it with dcae fid-ref"
        )
    if "sfid" not in metrics:
        return
    if reference.spatial is None and not reference.num_images:
        raise DataError(
            f"{reference.path} has no spatial statistics (mu_s, sigma_s), which sFID compares with: give a reference "
            "file of ADM, or a folder of images"
        )
    if reference.spatial is not None and reference.spatial.mean.size != NUM_SPATIAL_FEATURES:
        raise DataError(
            f"{reference.path} holds statistics of {reference.spatial.mean.size} spatial features, expected "
            f"{NUM_SPATIAL_FEATURES}: fetch ADM's file again"
        )
