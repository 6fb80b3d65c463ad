"""The prepared network computes what the plain one does."""

import pytest
import torch

from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.models.winograd import WinogradConv2d
from tests.golden import relative_error
from tests.small import SMALL_CONFIGS, randomise


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_equals_plain(name, dtype):
    config = SMALL_CONFIGS[name].replace(widths=(32, 128, 128), latent_channels=32)
    plain, fast = Autoencoder(config).eval(), Autoencoder(config)
    randomise(plain)
    fast.load_state_dict(plain.state_dict())
    prepare_for_inference(fast.to(dtype))
    assert any(isinstance(layer, WinogradConv2d) for layer in fast.modules()) == (dtype == torch.float32)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    with torch.inference_mode():
        z = plain.encode(x)
        assert relative_error(fast.encode(x.to(dtype)).float(), z) < tolerance
        assert relative_error(fast.decode(z.to(dtype)).float(), plain.decode(z)) < tolerance


def test_preparing_leaves_nothing_to_train():
    network = prepare_for_inference(Autoencoder(SMALL_CONFIGS["1.0"]))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())
