"""Scores of sets of features: Inception Score, kernel distances, precision and recall."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcae_core.errors import DataError

_NUM_SPLITS = 10
_SHUFFLE_SEED = 2020
_SUBSET_SEED = 2020
NUM_NEIGHBOURS = 3
_ROWS = 2048  # a block of distances is at most 2048 x 8192, in float32 67 MB, in float64 134 MB
_COLUMNS = 8192


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(logits: Tensor) -> InceptionScore:
    """Exponential of the mean divergence between each image's classes and those of its split, over 10 splits.

    The images, as unbiased logits (N, 1008), are shuffled by a fixed permutation first, so samples made class by class
    are spread over the splits. Works on one split at a time in float64: 8 KB per image of a split beside the logits
    themselves. DataError below 10 images, or where a logit is not a finite number.

    Source: Salimans et al. 2016; splits and shuffling as in torch-fidelity metric_isc.py, which the published
    evaluation uses.
    """
    count = len(logits)
    if count < _NUM_SPLITS:
        raise DataError(f"the Inception Score needs at least {_NUM_SPLITS} images, got {count}: give more images")
    if not torch.isfinite(logits).all():
        raise DataError("an image gave logits that are not finite numbers (NaN): the network or its input is broken")
    order = torch.from_numpy(np.random.RandomState(_SHUFFLE_SEED).permutation(count))
    scores = []
    for split in range(_NUM_SPLITS):
        chosen = order[split * count // _NUM_SPLITS : (split + 1) * count // _NUM_SPLITS]
        log_p = logits[chosen].to(torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        # xlogy: classes that no image of the split can have count nothing, instead of 0 * log(0).
        divergence = (p * log_p - torch.special.xlogy(p, p.mean(dim=0))).sum(dim=1)
        scores.append(divergence.mean().exp().item())
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


class KernelInceptionDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def _polynomial_mmd(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate with the kernel (x.y / D + 1)^3 between sets of equal size."""
    count, dimension = a.shape
    within_a, within_b, across = ((x @ y.T / dimension + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    pairs = count * (count - 1)
    within = (within_a.sum() - within_a.trace() + within_b.sum() - within_b.trace()) / pairs
    return (within - 2 * across.mean()).item()


def kernel_inception_distance(
    a: Tensor, b: Tensor, *, num_subsets: int = 100, subset_size: int = 1000
) -> KernelInceptionDistance:
    """KID: the polynomial-kernel discrepancy averaged over random subsets of features (N, D) and (M, D).

    Subsets are drawn without replacement; DataError where a set is smaller than one. Costs num_subsets * 3 *
    subset_size^2 * D multiplications and memory for three (subset_size, subset_size) float64 matrices.

    Source: Binkowski et al. 2018; subsets as in torch-fidelity metric_kid.py.
    """
    if min(len(a), len(b)) < subset_size:
        raise DataError(f"KID draws subsets of {subset_size} images, got only {len(a)} and {len(b)} to draw from")
    rng = np.random.RandomState(_SUBSET_SEED)
    distances = []
    for _ in range(num_subsets):
        from_a = torch.from_numpy(rng.choice(len(a), subset_size, replace=False))
        from_b = torch.from_numpy(rng.choice(len(b), subset_size, replace=False))
        distances.append(_polynomial_mmd(a[from_a].double(), b[from_b].double()))
    return KernelInceptionDistance(float(np.mean(distances)), float(np.std(distances)))


_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


def clip_maximum_mean_discrepancy(a: Tensor, b: Tensor) -> float:
    """CMMD: 1000 times the squared discrepancy with a Gaussian kernel of sigma 10 between embeddings (N, D) and (M, D).

    Of all pairs, each with itself among them, as published: never below 0 but for rounding. In float64, block by block:
    (N + M)^2 * D multiplications, less than 300 MB beside the embeddings. DataError where the dimensions differ.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603); google-research/cmmd, distance.py.
    """
    if a.shape[1] != b.shape[1]:
        raise DataError(f"embeddings of different dimension: {a.shape[1]} and {b.shape[1]}")
    within_a, within_b, across = (_mean_kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))
    return _CMMD_SCALE * (within_a + within_b - 2 * across)


def _mean_kernel(a: Tensor, b: Tensor) -> float:
    total = sum(
        torch.exp(distances / (-2 * _CMMD_SIGMA**2)).sum().item() for _, _, distances in _blocks(a.double(), b.double())
    )
    return total / (len(a) * len(b))


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(R, C) squared Euclidean distances, by one matrix product."""
    squares = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
    return torch.addmm(squares, rows, columns.T, alpha=-2).clamp(min=0)


def _blocks(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    for i in range(0, len(rows), _ROWS):
        for j in range(0, len(columns), _COLUMNS):
            block = _squared_distances(rows[i : i + _ROWS], columns[j : j + _COLUMNS])
            yield slice(i, i + _ROWS), slice(j, j + _COLUMNS), block


def _squared_radii(features: Tensor, num_neighbours: int) -> Tensor:
    """(N,) squared distance from each point to its k-th nearest other point."""
    nearest = features.new_full((len(features), num_neighbours + 1), float("inf"))
    for rows, _, distances in _blocks(features, features):
        candidates = torch.cat((nearest[rows], distances), dim=1)
        nearest[rows] = candidates.topk(num_neighbours + 1, dim=1, largest=False).values
    # The nearest of all is the point itself, at distance zero.
    return nearest[:, num_neighbours]


def _covered(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    """Share of points that lie inside the ball of at least one centre."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for rows, columns, distances in _blocks(points, centres):
        inside[rows] |= (distances <= squared_radii[columns]).any(dim=1)
    return inside.double().mean().item()


def precision_recall(generated: Tensor, real: Tensor, *, num_neighbours: int = NUM_NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall with balls that reach to each point's k-th nearest neighbour of its own set.

    Exact, by comparing all pairs block by block: time grows with (N + M)^2 (50,000 against 10,000 features: 1e13
    multiplications, minutes on a CPU, seconds on a GPU), memory beside the features stays below 200 MB.

    Args:
        generated: features (N, D).
        real: features (M, D), on the same device.
        num_neighbours: k; 3 in the published evaluations. DataError where a set has no k other points.

    Source: Kynkäänniemi et al. 2019; settings as in guided-diffusion evaluations/evaluator.py (ManifoldEstimator).
    """
    if generated.shape[1] != real.shape[1]:
        raise DataError(f"features of different dimension: {generated.shape[1]} and {real.shape[1]}")
    if min(len(generated), len(real)) <= num_neighbours:
        raise DataError(
            f"precision and recall need more than {num_neighbours} images on each side, "
            f"got {len(generated)} and {len(real)}"
        )
    # Distances do not change under a shift; centred features lose fewer bits in the product.
    centre = real.mean(dim=0)
    generated, real = generated - centre, real - centre
    precision = _covered(generated, real, _squared_radii(real, num_neighbours))
    recall = _covered(real, generated, _squared_radii(generated, num_neighbours))
    return PrecisionRecall(precision, recall)
