"""PSNR and SSIM against the golden values, torchmetrics and closed forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from dcae_core.errors import DataError
from dcae_core.metrics import reconstruction
from dcae_core.metrics.reconstruction import psnr, ssim

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"


def golden_rng_after_frechet() -> np.random.Generator:
    rng = np.random.default_rng(0)
    for shape in ((500, 64), (64, 64), (400, 64), (64, 64)):
        rng.standard_normal(shape)
    return rng


def random_images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_golden() -> None:
    rng = golden_rng_after_frechet()
    a, b = (torch.from_numpy(rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)) for _ in range(2))
    expected = json.loads((GOLDEN / "misc.json").read_text())["psnr_same_rng_next"]
    np.testing.assert_allclose(psnr(a, b).numpy(), expected, rtol=1e-7)


def test_psnr_of_equal_images_is_infinite_and_of_opposites_zero() -> None:
    black, white = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert psnr(black, black).item() == float("inf")
    assert psnr(black, white).item() == 0.0


@pytest.mark.parametrize("height_width", [(64, 64), (31, 77), (6, 6)])
def test_ssim_agrees_with_torchmetrics(height_width: tuple[int, int]) -> None:
    a = random_images((3, 3, *height_width), 0)
    noise = random_images(tuple(a.shape), 1).to(torch.int16) // 8
    b = (a.to(torch.int16) + noise).clamp(0, 255).to(torch.uint8)
    b[1] = a[1]
    b[2], a[2] = 255, 3  # flat images: the variances vanish
    expected = structural_similarity_index_measure(b.double(), a.double(), data_range=255.0, reduction="none")
    torch.testing.assert_close(ssim(b, a).double(), expected, rtol=2e-6, atol=2e-6)


def test_ssim_on_smooth_bright_images() -> None:
    ramp = torch.linspace(200, 255, 64).round().to(torch.uint8).expand(1, 3, 64, 64).contiguous()
    shifted = ramp.roll(3, dims=-1)
    expected = structural_similarity_index_measure(ramp.double(), shifted.double(), data_range=255.0)
    assert ssim(ramp, shifted).item() == pytest.approx(expected.item(), abs=2e-5)


@pytest.mark.parametrize(
    ("a", "b", "needle"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "different shapes"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), "uint8"),
        (torch.zeros(1, 3, 5, 8, dtype=torch.uint8), torch.zeros(1, 3, 5, 8, dtype=torch.uint8), "6x6"),
    ],
)
def test_bad_pairs_are_refused(a: torch.Tensor, b: torch.Tensor, needle: str) -> None:
    with pytest.raises(DataError, match=needle):
        ssim(a, b)


def test_measuring_a_large_image_in_strips_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_images((2, 3, 203, 40), 0), random_images((2, 3, 203, 40), 1)
    whole = psnr(a, b), ssim(a, b)
    monkeypatch.setattr(reconstruction, "_STRIP_VALUES", 1)
    assert len(list(reconstruction._strips(a.shape))) == 13
    assert torch.equal(psnr(a, b), whole[0])
    torch.testing.assert_close(ssim(a, b), whole[1], rtol=1e-6, atol=1e-6)
