"""From measured parts to scores: gathering, comparing, and what an evaluation comes to."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dcae_core.data.latents.statistics import LatentMoments, LatentStatistics
from dcae_core.errors import DataError
from dcae_core.metrics.feature_scores import (
    clip_maximum_mean_discrepancy,
    inception_score,
    kernel_inception_distance,
    precision_recall,
)
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.inception import INCEPTION_SCORE_RESIZE, NUM_FEATURES, RESIZE_RULES, ResizeRule
from dcae_core.metrics.reference import Reference
from dcae_core.pipelines.evaluation.parts import (
    CLIP_EMBEDDINGS,
    DINOV2_FEATURES,
    EMBEDDED_FEATURES,
    ENLARGED,
    FEATURES,
    LATENT_POSITIONS,
    LATENT_SQUARE_SUM,
    LATENT_SUM,
    LOGITS,
    ORIGINAL,
    ORIGINAL_FEATURES,
    SPATIAL_FEATURES,
    Part,
)
from dcae_core.recipes.evaluate import Expectation

PER_IMAGE = ("psnr", "ssim", "lpips")
_MEASURED = (FEATURES, SPATIAL_FEATURES, EMBEDDED_FEATURES, DINOV2_FEATURES)
_FEATURE_SETS = (*_MEASURED, *(ORIGINAL + name for name in _MEASURED))
_INCEPTION_FEATURES = (FEATURES, ORIGINAL_FEATURES)
_EMBEDDINGS = (CLIP_EMBEDDINGS, ORIGINAL + CLIP_EMBEDDINGS)
_INCEPTION_DISTANCES = {"fid": FEATURES, "sfid": SPATIAL_FEATURES}
_OTHER_DISTANCES = {"frechet": EMBEDDED_FEATURES, "fd_dinov2": DINOV2_FEATURES, "cmmd": CLIP_EMBEDDINGS}


@dataclass(frozen=True)
class MetricDescription:
    """What a score is called, by which published rules it is measured, and which way is better."""

    label: str
    protocol: str
    higher_is_better: bool


METRICS = {
    "psnr": MetricDescription("PSNR (dB)", "efficientvit: 8-bit, per image, averaged", True),
    "ssim": MetricDescription("SSIM", "torchmetrics default, data range 255, per image, averaged", True),
    "lpips": MetricDescription("LPIPS", "LPIPS v0.1 AlexNet as in torchmetrics, 8-bit, averaged", False),
    "fid": MetricDescription("FID", "efficientvit: pool features 2048, float64, N - 1", False),
    "sfid": MetricDescription("sFID", "guided-diffusion (ADM): 7 channels of mixed_6 at 17x17, N - 1", False),
    "is": MetricDescription("Inception Score", "torch-fidelity: unbiased logits, 10 splits, shuffle 2020", True),
    "precision": MetricDescription("Precision", "guided-diffusion (ADM): k = 3, pool features 2048", True),
    "recall": MetricDescription("Recall", "guided-diffusion (ADM): k = 3, pool features 2048", True),
    "kid": MetricDescription("KID", "torch-fidelity: cubic kernel, 100 subsets of 1000", False),
    "fd_dinov2": MetricDescription("FD-DINOv2", "dgm-eval: class token, 224 px by PIL bicubic, N - 1", False),
    "cmmd": MetricDescription("CMMD", "google-research: CLIP, Gaussian kernel of sigma 10, times 1000", False),
    "frechet": MetricDescription(
        "Fréchet distance", "ours: mean and deviation of the embedded autoencoder's latent channels, N - 1", False
    ),
}


@dataclass(frozen=True)
class Score:
    """One number and everything it depends on.

    Attributes:
        name: key in `METRICS`.
        protocol: the published rules it follows.
        spread: standard deviation, over images or splits; None where there is none.
        inception_sha256: hash of the Inception weights, for metrics that use them.
        resize: how images became Inception's input.
        network: of features other than Inception's, with its fingerprint.
        reference: what it compares with.
        reference_sha256: hash of the reference file; None where images were compared directly.
    """

    name: str
    value: float
    protocol: str
    num_images: int
    spread: float | None = None
    inception_sha256: str | None = None
    resize: str | None = None
    network: str | None = None
    reference: str | None = None
    reference_sha256: str | None = None

    def origin(self) -> str:
        """In one line: protocol, number of images, resize rule, hashes of the weights and the reference."""
        parts = [self.protocol, f"n = {self.num_images}"]
        if self.resize is not None:
            parts += [self.resize, f"Inception {str(self.inception_sha256)[:16]}"]
        if self.network is not None:
            parts.append(self.network)
        if self.reference is not None:
            parts.append(f"against {self.reference} {(self.reference_sha256 or '')[:16]}".rstrip())
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """What does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Gathered:
    """The rows of all parts, as far as they are needed whole.

    Attributes:
        indices: the images that were measured.
        damaged: a line for each that could not be decoded.
        num_enlarged: how many are smaller than the square that was cut from them.
        columns: name -> (N,) per-image values, and (N, D) features or logits where a metric needs all at once.
        gaussians: statistics of each set of features, and of those of the originals.
    """

    count: int = 0
    indices: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    num_enlarged: int = 0
    columns: dict[str, Tensor] = field(default_factory=dict)
    gaussians: dict[str, GaussianStatistics] = field(default_factory=dict)
    latent: LatentStatistics | None = None


def keeps_features(metrics: Iterable[str]) -> bool:
    """Whether a metric needs the features of all images at once (8 KB an image)."""
    return bool({"precision_recall", "kid"} & set(metrics))


def gather(parts: Iterable[Part], metrics: Iterable[str]) -> Gathered:
    """Add parts up in their order, holding one at a time; DataError if all images were damaged.

    Features stay in memory whole only where a metric needs them, logits for the Inception Score (4 KB an image),
    embeddings for CMMD (3 KB).
    """
    keep_features = keeps_features(metrics)
    gathered = Gathered()
    columns: dict[str, list[Tensor]] = {}
    latent = LatentMoments()
    for part in parts:
        gathered.count += len(part.indices)
        gathered.indices += part.indices.tolist()
        gathered.damaged += part.damaged
        gathered.num_enlarged += int(part.tensors[ENLARGED].sum()) if ENLARGED in part.tensors else 0
        if LATENT_SUM in part.tensors:
            sums = [part.tensors[name].sum(dim=0) for name in (LATENT_SUM, LATENT_SQUARE_SUM, LATENT_POSITIONS)]
            latent.add(sums[0], sums[1], int(sums[2]))
        for name, rows in part.tensors.items():
            if name in _FEATURE_SETS:
                gathered.gaussians.setdefault(name, GaussianStatistics(rows.shape[1])).update(rows)
            if name in (*PER_IMAGE, LOGITS) or (name in _INCEPTION_FEATURES and keep_features) or name in _EMBEDDINGS:
                columns.setdefault(name, []).append(rows)
    damaged = gathered.damaged
    if damaged and not gathered.count:
        raise DataError(f"not one of {len(damaged)} images can be decoded; the first says: {damaged[0]}")
    gathered.columns = {name: torch.cat(rows) for name, rows in columns.items()}
    gathered.latent = latent.result()
    return gathered


@dataclass(frozen=True)
class Comparison:
    """What scores on features compare with.

    Attributes:
        name: what reports call it.
        gaussians: of each kind of features.
        features: (M, 2048) of Inception, for precision, recall and KID.
        embeddings: (M, D) of CLIP.
        sha256: of the reference file.
        resize: the rule of both sides' images.
        num_images: how many were measured.
    """

    name: str
    gaussians: Mapping[str, Gaussian] = field(default_factory=dict)
    features: Tensor | None = None
    embeddings: Tensor | None = None
    sha256: str | None = None
    resize: ResizeRule = "half_pixel"
    num_images: int = 0


def compare_with_images(name: str, images: Gathered, prefix: str = "", resize: ResizeRule = "half_pixel") -> Comparison:
    """Images that were measured: those that went into the autoencoder, say, under names with `prefix`.

    Raises:
        DataError: there are fewer than two.
    """
    gaussians = {kind: gaussian_of(images, prefix + kind) for kind in _MEASURED if prefix + kind in images.gaussians}
    features, embeddings = (images.columns.get(prefix + kind) for kind in (FEATURES, CLIP_EMBEDDINGS))
    return Comparison(name, gaussians, features, embeddings, resize=resize, num_images=images.count)


def compare_with_reference(reference: Reference, theirs: Comparison | None, resize: ResizeRule) -> Comparison:
    """A reference file, and what was measured on the images in it."""
    measured = theirs or Comparison("")
    gaussians = dict(measured.gaussians) | {FEATURES: reference.gaussian}
    if reference.spatial is not None:
        gaussians[SPATIAL_FEATURES] = reference.spatial
    return replace(measured, name=reference.path.name, gaussians=gaussians, sha256=reference.sha256, resize=resize)


def gaussian_of(gathered: Gathered, name: str = FEATURES) -> Gaussian:
    """Mean and covariance of the features; DataError if there are fewer than two images."""
    statistics = gathered.gaussians.get(name, GaussianStatistics(NUM_FEATURES))
    return Gaussian(statistics.mean, statistics.covariance)


def compute_scores(
    gathered: Gathered,
    metrics: Iterable[str],
    inception_sha256: str | None,
    comparison: Comparison | None,
    networks: Mapping[str, str],
) -> list[Score]:
    """All scores, in the order of `metrics`; `networks`: which one a metric's features are of, where not Inception.

    DataError where a metric has too few images, or features have another dimension than the reference's.
    """
    scores: list[Score] = []
    for metric in metrics:
        if metric in PER_IMAGE:
            values = gathered.columns[metric].double()
            spread = values.std().item() if len(values) > 1 and values.isfinite().all() else None
            scores.append(_score(metric, values.mean().item(), gathered, spread=spread))
            continue
        if metric in _OTHER_DISTANCES:
            assert comparison is not None
            distance = _other_distance(metric, gathered, comparison)
            scores.append(_score(metric, distance, gathered, network=networks.get(metric), reference=comparison.name))
            continue
        assert inception_sha256 is not None
        if metric == "is":
            result = inception_score(gathered.columns[LOGITS])
            origin = {"inception_sha256": inception_sha256, "resize": INCEPTION_SCORE_RESIZE}
            scores.append(_score(metric, result.mean, gathered, spread=result.std, **origin))
            continue
        assert comparison is not None
        scores += _compared(metric, gathered, inception_sha256, comparison)
    return scores


def _compared(metric: str, gathered: Gathered, inception_sha256: str, comparison: Comparison) -> list[Score]:
    origin: dict[str, Any] = {
        "inception_sha256": inception_sha256,
        "resize": RESIZE_RULES[comparison.resize],
        "reference": comparison.name,
        "reference_sha256": comparison.sha256,
    }
    if metric in _INCEPTION_DISTANCES:
        return [_score(metric, _distance(gathered, comparison, _INCEPTION_DISTANCES[metric]), gathered, **origin)]
    assert comparison.features is not None
    if metric == "kid":
        distance = kernel_inception_distance(gathered.columns[FEATURES], comparison.features)
        return [_score(metric, distance.mean, gathered, spread=distance.std, **origin)]
    result = precision_recall(gathered.columns[FEATURES], comparison.features)
    return [
        _score("precision", result.precision, gathered, **origin),
        _score("recall", result.recall, gathered, **origin),
    ]


def _other_distance(metric: str, gathered: Gathered, comparison: Comparison) -> float:
    if metric != "cmmd":
        return _distance(gathered, comparison, _OTHER_DISTANCES[metric])
    assert comparison.embeddings is not None
    return clip_maximum_mean_discrepancy(gathered.columns[CLIP_EMBEDDINGS], comparison.embeddings)


def _distance(gathered: Gathered, comparison: Comparison, kind: str) -> float:
    return frechet_distance(gaussian_of(gathered, kind), comparison.gaussians[kind])


def _score(name: str, value: float, gathered: Gathered, **origin: Any) -> Score:
    return Score(name, value, METRICS[name].protocol, gathered.count, **origin)


_LATENT_LABELS = {"latent_mean": "latent mean", "latent_rms": "latent rms", "latent_std": "latent std"}


@dataclass(frozen=True)
class ExpectedFigure:
    """One figure: measured, expected (as published, where there is one), and whether they agree.

    Attributes:
        label: for people.
        measured: None where a figure is expected but was not measured.
        spread: its standard deviation, where there is one.
        num_images: that it is over.
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
        return "-" if self.measured is None else f"{round(self.measured, 4) + 0.0:.4f}"  # never -0.0000

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
        damaged: a line for each image that could not be decoded.
        crop: what was done to the size of the images; None for what a model made.
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
    crop: str | None
    warnings: list[str]
    latent: LatentStatistics | None
    names: list[str]
    values: dict[str, list[float]]
    shown: list[ShownImage]

    @property
    def guidance_scale(self) -> float:
        """Of a diffusion model."""
        scale: float = self.settings["diffusion"]["guidance_scale"]
        return scale

    def measured(self) -> dict[str, float]:
        """Every figure by name: the scores, and the latents' mean, rms and std."""
        figures = {score.name: score.value for score in self.scores}
        if self.latent is not None:
            figures |= {f"latent_{name}": getattr(self.latent, name) for name in ("mean", "rms", "std")}
        return figures

    def origins(self) -> list[str]:
        """What was done to the images, by which rules each score was measured, what it depends on: a line each."""
        crop = [] if self.crop is None else [f"images: {self.crop}"]
        tf32 = self.settings.get("execution", {}).get("tf32")
        computed = [] if tf32 is None else [f"float32 on NVIDIA GPUs: TF32 {'on' if tf32 else 'off'}"]
        return crop + [f"{METRICS[score.name].label}: {score.origin()}" for score in self.scores] + computed

    def to_dict(self) -> dict[str, Any]:
        """All but the images, for JSON; what is infinite (PSNR of equal images) becomes null."""
        document = {
            "subject": self.subject,
            "settings": self.settings,
            "num_images": self.num_images,
            "scores": {score.name: score.to_dict() for score in self.scores},
            "latent": None if self.latent is None else self.latent.to_dict(),
            "images": self.names,
            "per_image": self.values,
            "damaged": self.damaged,
            "crop": self.crop,
            "warnings": self.warnings,
        }
        return _without_infinities(document)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def compare_with_expected(evaluation: Evaluation, expected: Mapping[str, Expectation]) -> list[ExpectedFigure]:
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
