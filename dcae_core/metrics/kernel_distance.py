"""Maximum mean discrepancies between two sets of features: KID, and the Gaussian kernel that CMMD uses."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcae_core.errors import DataError

_SUBSET_SEED = 2020
_CMMD_SIGMA = 10.0
_CMMD_SCALE = 1000.0
_BLOCK = 4096


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
    """KID: the polynomial-kernel discrepancy averaged over random subsets.

    Costs num_subsets * 3 * subset_size^2 * D multiplications and memory for three (subset_size, subset_size) float64
    matrices.

    Args:
        a: features (N, D), at least `subset_size` of them.
        b: features (M, D), likewise.
        num_subsets: how many pairs of subsets are drawn, without replacement within each.
        subset_size: how many features each holds.

    Raises:
        DataError: a set is smaller than a subset.

    Source: Binkowski et al. 2018; subsets as in torch-fidelity metric_kid.py.
    """
    if min(len(a), len(b)) < subset_size:
        raise DataError(f"KID draws subsets of {subset_size} pictures, got only {len(a)} and {len(b)} to draw from")
    rng = np.random.RandomState(_SUBSET_SEED)
    distances = []
    for _ in range(num_subsets):
        from_a = torch.from_numpy(rng.choice(len(a), subset_size, replace=False))
        from_b = torch.from_numpy(rng.choice(len(b), subset_size, replace=False))
        distances.append(_polynomial_mmd(a[from_a].double(), b[from_b].double()))
    return KernelInceptionDistance(float(np.mean(distances)), float(np.std(distances)))


def _mean_gaussian_kernel(a: Tensor, b: Tensor) -> float:
    total = 0.0
    for rows in a.split(_BLOCK):
        for columns in b.split(_BLOCK):
            squares = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
            distances = torch.addmm(squares, rows, columns.T, alpha=-2)
            total += torch.exp(distances / (-2 * _CMMD_SIGMA**2)).sum().item()
    return total / (len(a) * len(b))


def gaussian_kernel_distance(a: Tensor, b: Tensor) -> float:
    """Discrepancy with a Gaussian kernel (sigma 10), times 1000: CMMD when the features are CLIP's.

    The biased estimate, as published, so two sets need not be of equal size. Costs (N + M)^2 * D multiplications;
    memory beside the features stays below 300 MB.

    Args:
        a: features (N, D), for CMMD of length one.
        b: features (M, D).

    Raises:
        DataError: a set is empty, or the dimensions differ.

    Source: Jayasumana et al. 2024, google-research/cmmd distance.py.
    """
    if len(a) == 0 or len(b) == 0 or a.shape[1] != b.shape[1]:
        raise DataError(f"expected two sets of features of one dimension, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    within = _mean_gaussian_kernel(a, a) + _mean_gaussian_kernel(b, b)
    return _CMMD_SCALE * (within - 2 * _mean_gaussian_kernel(a, b))
