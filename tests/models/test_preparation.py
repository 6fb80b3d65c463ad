"""The prepared network computes what the plain one does."""

import pytest
import torch

from dcae_core.devices import ProcessorFamily
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.inference import prepare_for_inference
from dcae_core.models.winograd import RULES, Rule, Step, WinogradConv2d, rule_for
from tests.golden import relative_error
from tests.small import SMALL_CONFIGS, randomise

EVERYWHERE = Rule((Step(1, 1),), "to test the route on every processor")


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepared_equals_plain(name, dtype):
    config = SMALL_CONFIGS[name].replace(widths=(32, 128, 128), latent_channels=32)
    plain, fast = Autoencoder(config).eval(), Autoencoder(config)
    randomise(plain)
    fast.load_state_dict(plain.state_dict())
    prepare_for_inference(fast.to(dtype), EVERYWHERE)
    assert any(isinstance(layer, WinogradConv2d) for layer in fast.modules()) == (dtype == torch.float32)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    with torch.inference_mode():
        z = plain.encode(x)
        assert relative_error(fast.encode(x.to(dtype)).float(), z) < tolerance
        assert relative_error(fast.decode(z.to(dtype)).float(), plain.decode(z)) < tolerance


@pytest.mark.parametrize("family", [*RULES, ProcessorFamily("", "")], ids=str)
def test_the_processor_of_the_machine_decides_where_no_rule_is_given(family, monkeypatch):
    monkeypatch.setattr("dcae_core.models.inference.processor_family", lambda: family)
    config = SMALL_CONFIGS["1.0"].replace(widths=(32, 128, 128), latent_channels=32)
    network = prepare_for_inference(Autoencoder(config))
    routed = [layer for layer in network.modules() if isinstance(layer, WinogradConv2d)]
    assert all(layer.rule == rule_for(family) for layer in routed)
    assert bool(routed) == rule_for(family).ever_pays(128, 128)


def test_preparing_leaves_nothing_to_train():
    network = prepare_for_inference(Autoencoder(SMALL_CONFIGS["1.0"]))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())
