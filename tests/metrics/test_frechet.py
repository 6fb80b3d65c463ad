"""The Fréchet distance against the golden value, a published routine, and closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from dcae_core.errors import DataError
from dcae_core.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"


def fit(rows: np.ndarray) -> Gaussian:
    return Gaussian(rows.mean(axis=0), np.cov(rows, rowvar=False))


def published_distance(a: Gaussian, b: Gaussian) -> float:
    """The published formula with a matrix square root, valid for full rank."""
    shift = a.mean - b.mean
    root = sqrtm(a.covariance @ b.covariance).real
    return float(shift @ shift + np.trace(a.covariance + b.covariance - 2 * root))


def test_golden_value() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64))
    b = rng.standard_normal((400, 64)) @ rng.standard_normal((64, 64)) + 0.3
    expected = json.loads((GOLDEN / "misc.json").read_text())["frechet_default_rng0_500x64_400x64"]
    assert frechet_distance(fit(a), fit(b)) == pytest.approx(expected, rel=1e-9)


def test_full_rank_agrees_with_the_matrix_square_root() -> None:
    rng = np.random.default_rng(1)
    a, b = (fit(rng.standard_normal((900, 200)) @ rng.standard_normal((200, 200))) for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(published_distance(a, b), rel=1e-8)


def test_diagonal_covariances_with_empty_directions() -> None:
    rng = np.random.default_rng(2)
    va, vb = rng.random((2, 120)) * 9
    va[:40], vb[20:90] = 0, 0  # both singular, and singular in different directions
    mean = rng.standard_normal(120)
    closed_form = ((np.sqrt(va) - np.sqrt(vb)) ** 2).sum() + (mean**2).sum()
    measured = frechet_distance(Gaussian(mean, np.diag(va)), Gaussian(np.zeros(120), np.diag(vb)))
    assert measured == pytest.approx(closed_form, rel=1e-10)


def test_scaled_rank_deficient_covariance() -> None:
    """(C, s^2 C) commute: the distance is (1 - s)^2 tr C, also with far fewer images than dimensions."""
    rows = np.random.default_rng(3).standard_normal((30, 256)) * np.geomspace(10, 1e-3, 256)
    a = fit(rows)
    b = Gaussian(a.mean, 0.49 * a.covariance)
    assert frechet_distance(a, b) == pytest.approx(0.09 * np.trace(a.covariance), rel=1e-9)


@pytest.mark.parametrize("num_rows", [20, 150, 170, 2000])
def test_identical_sets_are_at_distance_zero(num_rows: int) -> None:
    rows = np.random.default_rng(4).standard_normal((num_rows, 150)) * np.geomspace(5, 1e-4, 150)
    assert abs(frechet_distance(fit(rows), fit(rows))) < 1e-9


def test_symmetric_in_its_arguments_and_zero_covariance_is_the_distance_of_means() -> None:
    rng = np.random.default_rng(5)
    a, b = fit(rng.standard_normal((50, 80))), fit(rng.standard_normal((300, 80)))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    point = Gaussian(np.ones(80), np.zeros((80, 80)))
    expected = ((a.mean - 1) ** 2).sum() + np.trace(a.covariance)
    assert frechet_distance(a, point) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 17), min_size=1, max_size=8))
def test_any_split_into_batches_and_parts_gives_the_same_statistics(sizes: list[int]) -> None:
    rows = torch.randn(sum(sizes) + 2, 6, generator=torch.Generator().manual_seed(0)) + 1000
    merged = GaussianStatistics(6)
    for part in rows.split([*sizes, 2]):
        statistics = GaussianStatistics(6)
        statistics.update(part)
        merged.merge(statistics)
    assert merged.count == len(rows)
    np.testing.assert_allclose(merged.mean, rows.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_bad_features_get_one_line() -> None:
    statistics = GaussianStatistics(3)
    with pytest.raises(DataError, match="not finite"):
        statistics.update(torch.tensor([[1.0, float("nan"), 0.0]]))
    statistics.update(torch.ones(1, 3))
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        _ = statistics.covariance
    a = Gaussian(np.zeros(3), np.eye(3))
    with pytest.raises(DataError, match=r"different dimension.*3 and 4"):
        frechet_distance(a, Gaussian(np.zeros(4), np.eye(4)))
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(a, Gaussian(np.full(3, np.nan), np.eye(3)))
