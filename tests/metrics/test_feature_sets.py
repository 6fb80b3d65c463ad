"""Inception Score, precision and recall, KID and the Gaussian kernel distance: recorded peers and brute force."""

import numpy as np
import pytest
import torch

from dcae_core.errors import DataError
from dcae_core.metrics import feature_scores as precision_recall_module
from dcae_core.metrics.feature_scores import (
    inception_score,
    kernel_inception_distance,
    precision_recall,
)


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@pytest.fixture
def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(6)
    a = normal(rng, 300, 32)
    b = torch.from_numpy((rng.standard_normal((250, 32)) * 1.1 + 0.2).astype(np.float32))
    return a, b


def test_inception_score_is_torch_fidelitys() -> None:
    logits = 3 * normal(np.random.default_rng(5), 107, 1008)
    score = inception_score(logits)
    # torch-fidelity 0.4.0, isc_features_to_metric(logits)
    assert score.mean == pytest.approx(7.283218314232462, rel=1e-9)
    assert score.std == pytest.approx(0.5782536335791446, rel=1e-9)


def test_inception_score_of_one_class_is_one_and_of_certain_balanced_classes_their_number() -> None:
    assert inception_score(torch.zeros(50, 1008)).mean == pytest.approx(1)
    certain = 1000 * torch.eye(10, 1008).repeat(5000, 1)
    assert inception_score(certain).mean == pytest.approx(10, rel=1e-2)


def test_precision_and_recall_are_torch_fidelitys(two_sets: tuple[torch.Tensor, torch.Tensor]) -> None:
    generated, real = two_sets
    # torch-fidelity 0.4.0, prc_features_to_metric(generated, real, prc_neighborhood=3)
    assert precision_recall(generated, real) == pytest.approx((0.8433333039283752, 0.41999998688697815), abs=1e-6)


def test_precision_and_recall_by_brute_force_across_block_borders(
    two_sets: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_recall_module, "_ROWS", 64)
    monkeypatch.setattr(precision_recall_module, "_COLUMNS", 96)
    generated, real = (x.double() for x in two_sets)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        radii = torch.cdist(centres, centres).sort(dim=1).values[:, 3]
        return (torch.cdist(points, centres) <= radii).any(dim=1).double().mean().item()

    expected = (covered(generated, real), covered(real, generated))
    assert precision_recall(*two_sets) == pytest.approx(expected, abs=1e-12)


def test_precision_and_recall_of_equal_and_of_distant_sets(two_sets: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, _ = two_sets
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 1000) == (0, 0)


def test_kid_is_torch_fidelitys(two_sets: tuple[torch.Tensor, torch.Tensor]) -> None:
    distance = kernel_inception_distance(*two_sets, num_subsets=10, subset_size=100)
    # torch-fidelity 0.4.0, kid_features_to_metric(a, b, kid_subsets=10, kid_subset_size=100)
    assert distance.mean == pytest.approx(0.12710044384002686, rel=1e-5)
    assert distance.std == pytest.approx(0.012693624045612119, rel=1e-4)


def test_too_few_images_get_one_line() -> None:
    with pytest.raises(DataError, match="at least 10 images, got 9"):
        inception_score(torch.zeros(9, 1008))
    with pytest.raises(DataError, match="not finite"):
        inception_score(torch.full((10, 4), torch.nan))
    with pytest.raises(DataError, match="more than 3 images on each side, got 3 and 9"):
        precision_recall(torch.zeros(3, 4), torch.zeros(9, 4))
    with pytest.raises(DataError, match="different dimension: 4 and 5"):
        precision_recall(torch.zeros(9, 4), torch.zeros(9, 5))
    with pytest.raises(DataError, match="subsets of 1000 images"):
        kernel_inception_distance(torch.zeros(9, 4), torch.zeros(9, 4))
