import pytest
import torch

from dcae_core.errors import UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.training.pca import initialise_pca
from tests.small import small_config

LINEAR = {"depths": (0, 1, 1), "downsample": "conv", "head_norm": False, "head_act": None}


def smooth_images(count=40, size=32):
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2).clamp(-1, 1)


@pytest.mark.parametrize("blocks", [("res", "res", "res"), ("res", "res", "evit_glu")])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_initial_network_is_the_projection_onto_the_stagewise_basis(blocks, shortcuts):
    config = small_config(
        **LINEAR, widths=(8, 16, 32), blocks=blocks, residual_shortcuts=shortcuts, latent_shortcuts=shortcuts
    )
    network, images = Autoencoder(config).eval(), smooth_images()
    initialise_pca(network, images)
    with torch.no_grad():
        # 12 components of 12 fit into 16 channels, so stage 1 keeps everything, and stage 2 keeps 32 of its 48:
        # the latent is then the 8 strongest of a PCA of whole 4x4 blocks up to what those 16 weakest carried.
        blocks4 = torch.nn.functional.pixel_unshuffle(images, 4).movedim(1, -1).flatten(0, 2)
        basis = torch.linalg.eigh((blocks4.T @ blocks4).double()).eigenvectors[:, -8:].float()
        best = (blocks4 - blocks4 @ basis @ basis.T).square().mean()
        error = (network(images) - images).square().mean()
        twice = network(network(images))
    assert best <= error * (1 + 1e-5)
    assert error < 1.02 * best
    torch.testing.assert_close(twice, network(images), rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_linear_is_refused():
    with pytest.raises(UsageError, match="init: pca needs downsample: conv"):
        initialise_pca(Autoencoder(small_config()), smooth_images(2))
