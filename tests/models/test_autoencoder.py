import pytest
import torch

from dcae_core import create_autoencoder, list_models
from dcae_core.errors import DataError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.configs import HEAD_CHANNELS, AutoencoderConfig
from dcae_core.models.layers import ReLULinearAttention
from dcae_core.zoo import AUTOENCODERS
from tests.small import SMALL_CONFIGS, small_autoencoder, small_config


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_shapes_follow_the_compression_ratio(name):
    config = SMALL_CONFIGS[name]
    network = Autoencoder(config)
    z = network.encode(torch.zeros(2, 3, 16, 24))
    assert z.shape == (2, config.latent_channels, 4, 6)
    assert network.decode(z).shape == (2, 3, 16, 24)
    assert network.spatial_compression_ratio == 4


def test_linear_attention_equals_its_definition_position_by_position():
    torch.manual_seed(0)
    attention = ReLULinearAttention(2 * HEAD_CHANNELS).double()
    attended = attention._attend(qkv := torch.randn(1, 6 * HEAD_CHANNELS, 3, 5, dtype=torch.float64))
    for head in range(2):
        q, k, v = qkv[0].flatten(1)[head * 3 * HEAD_CHANNELS : (head + 1) * 3 * HEAD_CHANNELS].chunk(3)
        similarity = k.relu().T @ q.relu()
        expected = v @ (similarity / similarity.sum(dim=0))
        ours = attended[0].flatten(1)[head * HEAD_CHANNELS : (head + 1) * HEAD_CHANNELS]
        torch.testing.assert_close(ours, expected)


def test_leading_channels_are_the_leading_channels_of_the_whole_latent():
    network = small_autoencoder()
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(network.encode(x, latent_channels=3), network.encode(x)[:, :3])
    z = torch.randn(1, 3, 4, 4)
    padded = torch.cat([z, torch.zeros(1, 5, 4, 4)], dim=1)
    torch.testing.assert_close(network.decode(z), network.decode(padded))


def test_shapes_that_do_not_fit_are_refused():
    network = small_autoencoder()
    with pytest.raises(DataError, match="multiples of 4"):
        network.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(DataError, match="8 channels, not 9"):
        network.decode(torch.zeros(1, 9, 4, 4))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": (1, -1, 1)}, "from 0 to"),
        ({"depths": (1, 10**9, 1)}, "encoder_depths must be a whole number"),
        ({"depths": (1, 1.5, 1)}, "encoder_depths must be a whole number"),
        ({"widths": (10**9,) * 3}, "encoder_widths must be a whole number"),
        ({"widths": 32}, "must be a list"),
        ({"blocks": 7}, "must be a list"),
        ({"latent_channels": True}, "not True"),
        ({"in_channels": float("nan")}, "not nan"),
        ({"attention_scales": ((), (), (4,))}, "must be odd"),
        ({"attention_scales": ((), (), ("5",))}, "attention_scales must be a whole number"),
        ({"head_act": {}}, "is not one of"),
        ({"latent_shortcuts": "no"}, "is not one of"),
        ({"widths": (16,) * 40}, "2 to 16 stages"),
        ({"widths": (16, 24, 32)}, "multiple of the next width"),
        ({"latent_channels": 5}, "must divide"),
        ({"encoder_depths": (1, 1)}, "has 2 entries"),
        ({"downsample": "pool"}, "'pool' is not one of"),
        ({"widhts": (16, 32, 32)}, "did you mean widths"),
        ({"widths": (16, 32, 48)}, "multiple of"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        small_config(**overrides)


def test_configuration_survives_a_round_trip_through_plain_values():
    for entry in AUTOENCODERS.values():
        assert AutoencoderConfig.from_dict(entry.config.to_dict()) == entry.config


def test_create_takes_overrides_and_names_the_nearest_model():
    network = create_autoencoder("mit-han-lab/dc-ae-f32c32-in-1.0", widths=(16, 32, 32, 32), latent_channels=16)
    assert network.spatial_compression_ratio == 8
    assert network.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 16, 2, 2)
    with pytest.raises(UsageError, match=r"dc-ae-f32c32-in-1\.0"):
        create_autoencoder("dc-ae-f32c32-in-1.1")


def test_list_models_matches_patterns():
    names = list_models("*f64c128*")
    assert {"dc-ae-f64c128-in-1.0", "dc-ae-f64c128-mix-1.0", "dc-ae-f64c128-1.5"} <= set(names)
    assert all("f64c128" in name for name in names)
