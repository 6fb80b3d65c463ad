"""Inception Score: how sure and how varied the classes of generated pictures are."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcae_core.errors import DataError

_NUM_SPLITS = 10
_SHUFFLE_SEED = 2020


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(logits: Tensor) -> InceptionScore:
    """Exponential of the mean divergence between each picture's classes and those of its split, over 10 splits.

    The pictures are shuffled by a fixed permutation first, so samples made class by class are spread over the splits.
    Works on one split at a time in float64: 8 KB per picture of a split beside the logits themselves.

    Args:
        logits: unbiased logits (N, 1008).

    Raises:
        DataError: fewer than 10 pictures, or a logit is not a finite number.

    Source: Salimans et al. 2016; splits and shuffling as in torch-fidelity metric_isc.py, which the published
    evaluation uses.
    """
    count = len(logits)
    if count < _NUM_SPLITS:
        raise DataError(f"the Inception Score needs at least {_NUM_SPLITS} pictures, got {count}: give more pictures")
    if not torch.isfinite(logits).all():
        raise DataError("a picture gave logits that are not finite numbers (NaN): the network or its input is broken")
    order = torch.from_numpy(np.random.RandomState(_SHUFFLE_SEED).permutation(count))
    scores = []
    for split in range(_NUM_SPLITS):
        chosen = order[split * count // _NUM_SPLITS : (split + 1) * count // _NUM_SPLITS]
        log_p = logits[chosen].to(torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        # xlogy: classes that no picture of the split can have count nothing, instead of 0 * log(0).
        divergence = (p * log_p - torch.special.xlogy(p, p.mean(dim=0))).sum(dim=1)
        scores.append(divergence.mean().exp().item())
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
