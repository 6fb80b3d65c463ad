"""Both published layouts: the released key lists, and diffusers' AutoencoderDC alive beside us."""

import pytest
import torch

from dcae_core.checkpoints.layouts import (
    from_diffusers,
    from_diffusers_config,
    from_original,
    to_diffusers,
    to_diffusers_config,
    to_original,
)
from dcae_core.errors import UsageError
from dcae_core.models.autoencoder import Autoencoder, build_on_meta
from dcae_core.zoo import AUTOENCODERS, EMBEDDED_AUTOENCODER
from tests.golden import relative_error, state_dict_keys
from tests.small import SMALL_CONFIGS, randomise, small_config

RELEASED = [name for name in AUTOENCODERS if name != EMBEDDED_AUTOENCODER]


def shapes_of(state):
    return {key: list(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_key_list_is_ours_in_the_original_layout(name):
    config = AUTOENCODERS[name].config
    expected = state_dict_keys()["original"][state_dict_keys()["autoencoders"][name]]
    state = build_on_meta(config).state_dict()
    published = to_original(config, state)
    assert shapes_of(published) == expected
    assert from_original(config, published).keys() == state.keys()


@pytest.mark.parametrize(
    "name", ["dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0", "dc-ae-f128c512-in-1.0", "dc-ae-f32c32-sana-1.0"]
)
def test_every_released_key_list_is_ours_in_the_diffusers_layout(name):
    entry = AUTOENCODERS[name]
    listed = state_dict_keys()["diffusers"][name]
    assert from_diffusers_config(listed["config"]) == entry.config
    state = build_on_meta(entry.config).state_dict()
    published = to_diffusers(entry.config, state)
    assert shapes_of(published) == listed["keys"]
    assert shapes_of(from_diffusers(entry.config, published)) == shapes_of(state)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_live_parity_with_autoencoder_dc_in_both_directions(name):
    from diffusers import AutoencoderDC

    config = SMALL_CONFIGS[name]
    ours = Autoencoder(config)
    randomise(ours)
    peer = AutoencoderDC.from_config(to_diffusers_config(config, 0.5)).eval()
    peer.load_state_dict(to_diffusers(config, ours.state_dict()), strict=True)
    back = Autoencoder(from_diffusers_config(dict(peer.config)))
    back.load_state_dict(from_diffusers(config, peer.state_dict()), strict=True)
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for network in (ours.eval(), back.eval()):
            z = network.encode(x)
            assert relative_error(z, peer.encode(x).latent) < 1e-5
            assert relative_error(network.decode(z), peer.decode(z).sample) < 1e-5


@pytest.mark.parametrize("spelling", ["Conv", "conv"])
def test_both_spellings_of_the_strided_convolution_are_read(spelling):
    values = to_diffusers_config(SMALL_CONFIGS["sana"], None) | {"downsample_block_type": spelling}
    assert from_diffusers_config(values).downsample == "conv"


@pytest.mark.parametrize("overrides", [{"head_norm": False}, {"head_act": None}, {"residual_shortcuts": False}])
def test_what_autoencoder_dc_cannot_express_is_refused(overrides):
    with pytest.raises(UsageError, match="AutoencoderDC always has"):
        to_diffusers_config(small_config(**overrides), None)
