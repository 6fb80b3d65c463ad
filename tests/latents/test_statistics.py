"""Moments of latents: the same for any split into batches, and those of all values at once."""

import pytest
import torch

from dcae_core.data.latents.statistics import LatentMoments


@pytest.mark.parametrize("sizes", [[12], [1, 11], [5, 3, 4]])
def test_any_split_gives_the_moments_of_all_values(sizes: list[int]) -> None:
    latents = 3 * torch.randn(12, 4, 2, 5, generator=torch.Generator().manual_seed(0)) + 1
    moments = LatentMoments()
    for part in latents.split(sizes):
        moments.update(part)
    statistics = moments.result()
    assert statistics is not None
    values = latents.double()
    assert statistics.mean == pytest.approx(values.mean().item())
    assert statistics.rms == pytest.approx(values.square().mean().sqrt().item())
    assert statistics.std == pytest.approx(values.std(correction=0).item())
    assert statistics.channel_mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert statistics.channel_std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())


def test_nothing_has_no_moments() -> None:
    moments = LatentMoments()
    moments.update(torch.empty(0, 4, 2, 2))
    assert moments.result() is None
