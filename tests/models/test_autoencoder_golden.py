"""Our autoencoders against values measured by running the published implementation."""

import pytest
import torch

from dcae_core.checkpoints import load_autoencoder
from dcae_core.checkpoints.layouts import from_original
from dcae_core.models.autoencoder import build_on_meta
from dcae_core.zoo import AUTOENCODERS
from tests.golden import golden_state, golden_tensors, relative_error, state_dict_keys

TOLERANCE = 1e-5


def published_state(name):
    return golden_state(state_dict_keys()["original"][state_dict_keys()["autoencoders"][name]])


@pytest.fixture(scope="module")
def state_of_f32c128():
    """2.7 GB, made once for the tests that share it."""
    return published_state("dc-ae-f32c128-1.5")


def load_golden(name, state):
    config = AUTOENCODERS[name].config
    network = build_on_meta(config)
    network.load_state_dict(from_original(config, dict(state)), strict=True, assign=True)
    return network.eval()


@pytest.mark.parametrize(
    "name",
    ["dc-ae-f32c32-in-1.0", "dc-ae-f64c128-in-1.0", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32-sana-1.1"],
)
def test_latent_and_decoding_are_those_of_the_published_implementation(name):
    golden = golden_tensors(name)
    network = load_golden(name, published_state(name))
    x = golden["image_u8"].permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        latent = network.encode(x)
        assert relative_error(latent, golden["latent"]) < TOLERANCE
        assert relative_error(network.decode(golden["latent"]), golden["decoded"]) < TOLERANCE


def test_leading_latent_channels_are_those_of_the_published_implementation(state_of_f32c128):
    golden = golden_tensors("dc-ae-f32c128-1.5")
    network = load_golden("dc-ae-f32c128-1.5", state_of_f32c128)
    x = golden["image_u8"].permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        for suffix, channels in (("", None), (".c48", 48)):
            assert relative_error(network.encode(x, channels), golden[f"latent{suffix}"]) < TOLERANCE
            assert relative_error(network.decode(golden[f"latent{suffix}"]), golden[f"decoded{suffix}"]) < TOLERANCE


def test_the_name_of_leading_channels_gives_the_published_ones(tmp_path, state_of_f32c128):
    """`dc-ae-f32c128-1.5-c48` is the released checkpoint's first 48 channels."""
    golden = golden_tensors("dc-ae-f32c128-1.5")
    torch.save(state_of_f32c128, tmp_path / "dc-ae-f32c128-1.5-c48.pt")
    network = load_autoencoder(tmp_path / "dc-ae-f32c128-1.5-c48.pt", prepare=False)
    x = golden["image_u8"].permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        assert network.latent_channels == 48
        assert relative_error(network.encode(x), golden["latent.c48"]) < TOLERANCE
        assert relative_error(network.decode(golden["latent.c48"]), golden["decoded.c48"]) < TOLERANCE
