"""What is measured, image by image and over all of them."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dcae_core.data.images import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import CheckpointError, DataError, UsageError
from dcae_core.metrics.feature_scores import inception_score, kernel_inception_distance, precision_recall
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance
from dcae_core.metrics.inception import FID_RESIZE, INCEPTION_SCORE_RESIZE, NUM_FEATURES, InceptionExtractor
from dcae_core.metrics.lpips import LPIPS
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.metrics.reference import Reference
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.evaluation.parts import Part

FEATURES, LOGITS, ORIGINAL_FEATURES = "features", "logits", "original_features"
LATENT_SUM, LATENT_SQUARE_SUM, LATENT_POSITIONS = "latent_sum", "latent_square_sum", "latent_positions"


class FeatureMeasurement:
    """Inception features, and logits where they are asked for, of images from anywhere."""

    def __init__(self, extractor: InceptionExtractor, *, with_logits: bool = False) -> None:
        self._extractor = extractor
        self._with_logits = with_logits

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows `features` (B, 2048) and `logits` (B, 1008).

        Raises:
            DataError: the network gives values that are not finite.
        """
        output = self._extractor(images, with_logits=self._with_logits)
        if not torch.isfinite(output.features).all():
            raise DataError("the Inception network gives features that are not finite numbers (NaN): check its weights")
        return {FEATURES: output.features} | ({LOGITS: output.logits} if output.logits is not None else {})


class ReconstructionMeasurement:
    """Images through an autoencoder, compared with what comes out, and its latents.

    Args:
        network: computes where its weights are, in their number type.
        metrics: names of what is measured.
        lpips: for the metric of that name.
        features: for metrics on Inception features.
        with_original_features: also take the features of the images themselves, as the reference.

    Source: the published evaluation (efficientvit aecore/evaluator.py): images are 8-bit before every metric.
    """

    def __init__(
        self,
        network: Autoencoder,
        metrics: Collection[str],
        *,
        lpips: LPIPS | None = None,
        features: FeatureMeasurement | None = None,
        with_original_features: bool = False,
    ) -> None:
        self._network = network
        self._metrics = metrics
        self._lpips = lpips
        self._features = features
        self._with_original_features = with_original_features
        weight = next(network.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    @torch.inference_mode()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, uint8 (B, 3, H, W), and the latent, float32 (B, C, h, w), on the network's device.

        Raises:
            UsageError: the sides are no multiples of the network's stride.
            CheckpointError: the network gives NaN or infinite values.
        """
        stride = self._network.spatial_compression_ratio
        height, width = images.shape[-2:]
        if height % stride or width % stride:
            raise UsageError(
                f"images of {width}x{height} do not fit a network of stride {stride}: give --resolution a multiple "
                f"of {stride}, such as {max(stride, min(height, width) // stride * stride)}"
            )
        x = uint8_to_tensor(images.to(self._device)).to(self._dtype)
        latent = self._network.encode(x)
        decoded = self._network.decode(latent)
        if not torch.isfinite(decoded).all():
            raise CheckpointError(
                "the network gives NaN or infinite values: its weights are damaged, or too large for this --dtype "
                "(take fp32 or bf16)"
            )
        return tensor_to_uint8(decoded), latent.float()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows for each metric, and sums of each latent channel.

        Raises:
            UsageError: the sides are no multiples of the network's stride.
            CheckpointError: the network gives NaN or infinite values.
        """
        decoded, latent = self.reconstruct(images)
        original = images.to(self._device)
        rows = _latent_rows(latent)
        if "psnr" in self._metrics:
            rows["psnr"] = psnr(original, decoded)
        if "ssim" in self._metrics:
            rows["ssim"] = ssim(original, decoded)
        if self._lpips is not None:
            rows["lpips"] = self._lpips(uint8_to_tensor(original), uint8_to_tensor(decoded))
        if self._features is not None:
            rows |= self._features(decoded)
            if self._with_original_features:
                rows[ORIGINAL_FEATURES] = self._features(original)[FEATURES]
        return {name: tensor.cpu() for name, tensor in rows.items()}


def _latent_rows(latent: Tensor) -> dict[str, Tensor]:
    values = latent.flatten(2).cpu().double()
    positions = torch.full((len(values),), values.shape[2], dtype=torch.int64)
    return {
        LATENT_SUM: values.sum(dim=2),
        LATENT_SQUARE_SUM: values.square().sum(dim=2),
        LATENT_POSITIONS: positions,
    }


PER_IMAGE = ("psnr", "ssim", "lpips")
_USUAL_NUMBER = 50_000


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
    "is": MetricDescription("Inception Score", "torch-fidelity: unbiased logits, 10 splits, shuffle 2020", True),
    "precision": MetricDescription("Precision", "guided-diffusion (ADM): k = 3, pool features 2048", True),
    "recall": MetricDescription("Recall", "guided-diffusion (ADM): k = 3, pool features 2048", True),
    "kid": MetricDescription("KID", "torch-fidelity: cubic kernel, 100 subsets of 1000", False),
}


@dataclass(frozen=True)
class Score:
    """One number and everything it depends on.

    Attributes:
        name: key in `METRICS`.
        value: the number.
        protocol: the published rules it follows.
        num_images: how many images it is over.
        spread: standard deviation, over images or splits; None where there is none.
        inception_sha256: hash of the Inception weights, for metrics that use them.
        resize: how images became Inception's input.
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
    reference: str | None = None
    reference_sha256: str | None = None

    def origin(self) -> str:
        """In one line: protocol, number of images, resize rule, hashes of the weights and the reference."""
        parts = [f"{METRICS[self.name].label}: {self.protocol}", f"n = {self.num_images}"]
        if self.resize is not None:
            parts += [self.resize, f"Inception {str(self.inception_sha256)[:16]}"]
        if self.reference is not None:
            parts.append(f"against {self.reference} {(self.reference_sha256 or '')[:16]}".rstrip())
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """What does not apply is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class LatentStatistics:
    """Of all values of all latents, and of each channel: (C,) lists."""

    mean: float
    rms: float
    std: float
    channel_mean: list[float]
    channel_std: list[float]


@dataclass
class Gathered:
    """The rows of all parts, as far as they are needed whole.

    Attributes:
        count: images that were measured.
        indices: which they are.
        damaged: a line for each that could not be decoded.
        columns: name -> (N,) per-image values, and (N, D) features or logits where a metric needs all at once.
        gaussians: statistics of `features` and `original_features`.
    """

    count: int = 0
    indices: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    columns: dict[str, Tensor] = field(default_factory=dict)
    gaussians: dict[str, GaussianStatistics] = field(default_factory=dict)
    latent: LatentStatistics | None = None


def gather(parts: Iterable[Part], metrics: Iterable[str]) -> Gathered:
    """Add parts up in their order, holding one at a time.

    Features stay in memory whole only for precision and recall and for KID (8 KB an image), logits for the Inception
    Score (4 KB an image).
    """
    keep_features = bool({"precision_recall", "kid"} & set(metrics))
    gathered = Gathered()
    columns: dict[str, list[Tensor]] = {}
    latent = _LatentSums()
    for part in parts:
        gathered.count += len(part.indices)
        gathered.indices += part.indices.tolist()
        gathered.damaged += part.damaged
        latent.update(part)
        for name, rows in part.tensors.items():
            if name in (FEATURES, ORIGINAL_FEATURES):
                gathered.gaussians.setdefault(name, GaussianStatistics(NUM_FEATURES)).update(rows)
            if name in (*PER_IMAGE, LOGITS) or (name in (FEATURES, ORIGINAL_FEATURES) and keep_features):
                columns.setdefault(name, []).append(rows)
    gathered.columns = {name: torch.cat(rows) for name, rows in columns.items()}
    gathered.latent = latent.result()
    return gathered


class _LatentSums:
    def __init__(self) -> None:
        self._sum, self._square_sum, self._positions = torch.zeros(()), torch.zeros(()), 0

    def update(self, part: Part) -> None:
        if LATENT_SUM in part.tensors:
            self._sum = self._sum + part.tensors[LATENT_SUM].sum(dim=0)
            self._square_sum = self._square_sum + part.tensors[LATENT_SQUARE_SUM].sum(dim=0)
            self._positions += int(part.tensors[LATENT_POSITIONS].sum())

    def result(self) -> LatentStatistics | None:
        if self._positions == 0:
            return None
        means, squares = self._sum / self._positions, self._square_sum / self._positions
        mean, square = means.mean().item(), squares.mean().item()
        return LatentStatistics(
            mean=mean,
            rms=square**0.5,
            std=max(square - mean**2, 0.0) ** 0.5,
            channel_mean=means.tolist(),
            channel_std=(squares - means**2).clamp(min=0).sqrt().tolist(),
        )


@dataclass(frozen=True)
class Comparison:
    """What scores on features compare with.

    Attributes:
        name: what reports call it.
        gaussian: for FID.
        features: (M, 2048) for precision, recall and KID.
        sha256: of the reference file.
    """

    name: str
    gaussian: Gaussian
    features: Tensor | None = None
    sha256: str | None = None


def compare_with_originals(gathered: Gathered) -> Comparison:
    """The images that went into the autoencoder, as the reference for what came out."""
    gaussian = gaussian_of(gathered, ORIGINAL_FEATURES)
    return Comparison(f"the {gathered.count} originals", gaussian, gathered.columns.get(ORIGINAL_FEATURES))


def compare_with_reference(reference: Reference, features: Tensor | None) -> Comparison:
    """A reference file."""
    return Comparison(reference.path.name, reference.gaussian, features, reference.sha256)


def gaussian_of(gathered: Gathered, name: str = FEATURES) -> Gaussian:
    """Mean and covariance of the features.

    Raises:
        DataError: there are fewer than two images.
    """
    statistics = gathered.gaussians.get(name, GaussianStatistics(NUM_FEATURES))
    return Gaussian(statistics.mean, statistics.covariance)


def compute_scores(
    gathered: Gathered, metrics: Iterable[str], inception_sha256: str | None, comparison: Comparison | None
) -> list[Score]:
    """All scores, in the order of `metrics`.

    Raises:
        DataError: too few images for a metric, or features of another dimension than the reference's.
    """
    scores: list[Score] = []
    for metric in metrics:
        if metric in PER_IMAGE:
            values = gathered.columns[metric].double()
            spread = values.std().item() if len(values) > 1 and values.isfinite().all() else None
            scores.append(_score(metric, values.mean().item(), gathered, spread=spread))
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
        "resize": FID_RESIZE,
        "reference": comparison.name,
        "reference_sha256": comparison.sha256,
    }
    if metric == "fid":
        return [_score(metric, frechet_distance(gaussian_of(gathered), comparison.gaussian), gathered, **origin)]
    assert comparison.features is not None
    if metric == "kid":
        distance = kernel_inception_distance(gathered.columns[FEATURES], comparison.features)
        return [_score(metric, distance.mean, gathered, spread=distance.std, **origin)]
    result = precision_recall(gathered.columns[FEATURES], comparison.features)
    return [
        _score("precision", result.precision, gathered, **origin),
        _score("recall", result.recall, gathered, **origin),
    ]


def _score(name: str, value: float, gathered: Gathered, **origin: Any) -> Score:
    return Score(name, value, METRICS[name].protocol, gathered.count, **origin)


def warnings_about(scores: Iterable[Score], reference: Reference | None, inception_sha256: str | None) -> list[str]:
    """What keeps the scores from being compared with published ones, one line each."""
    lines = []
    counts = [score.num_images for score in scores if score.inception_sha256 is not None]
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
    if reference is not None and inception_sha256 is not None:
        recorded = reference.description.get("inception_sha256")
        if recorded not in (None, inception_sha256):
            lines.append(
                f"{reference.path.name} was made with other Inception weights ({str(recorded)[:8]}...) than these "
                f"({inception_sha256[:8]}...): the FID means nothing"
            )
    return lines


def require_comparable(reference: Reference) -> None:
    """Refuse a reference of other features before anything is computed.

    Raises:
        DataError: its dimension is not 2048.
    """
    if reference.gaussian.mean.size != NUM_FEATURES:
        raise DataError(
            f"{reference.path} holds statistics of {reference.gaussian.mean.size} features, expected {NUM_FEATURES}: "
            "make it with dcae fid-ref"
        )
