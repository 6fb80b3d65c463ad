"""Parameters and multiply-accumulates against the figures printed in arXiv 2410.10733 and the released code."""

import pytest
import torch
from torch import nn

from dcae_core.checkpoints import load_autoencoder
from dcae_core.models.complexity import autoencoder_complexity, count_macs, count_parameters, denoiser_complexity
from dcae_core.models.configs import denoiser_config
from dcae_core.zoo import AUTOENCODERS, CHANNEL_VARIANTS, DENOISERS, EMBEDDED_AUTOENCODER, Cost

MILLION, BILLION = 1e6, 1e9


def test_a_convolution_and_a_linear_layer_are_counted_as_by_hand() -> None:
    convolution = nn.Conv2d(6, 8, 3, padding=1, groups=2)
    assert count_parameters(convolution) == 8 * 3 * 9 + 8
    assert count_macs(convolution, torch.zeros(1, 6, 5, 7)) == 5 * 7 * 8 * 3 * 9
    assert count_macs(nn.Linear(10, 20), torch.zeros(4, 10)) == 4 * 10 * 20


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        ("dc-ae-f32c32-in-1.0", (123.17, 200.18), (1042.7, 1384.7)),
        ("dc-ae-f64c128-in-1.0", (264.55, 412.35), (1052.6, 1398.3)),
        ("dc-ae-f128c512-in-1.0", (415.66, 705.02), (1055.4, 1402.8)),
        ("dc-ae-f32c32-sana-1.0", (153.03, 159.22), (647.4, 1046.1)),
    ],
)
def test_autoencoders_have_the_published_size_and_cost(name, parameters, gmacs) -> None:
    parts = autoencoder_complexity(AUTOENCODERS[name].config)
    assert [part.num_parameters / MILLION for part in parts] == pytest.approx(parameters, abs=0.005)
    assert [part.macs / BILLION for part in parts] == pytest.approx(gmacs, abs=0.06)


@pytest.mark.parametrize(
    ("network", "parameters", "gmacs"),
    [
        ({"architecture": "uvit", "depth": 12, "hidden_size": 512, "num_heads": 8}, 44.79, 12.26),
        ({"architecture": "dit", "depth": 28, "hidden_size": 1152, "num_heads": 16}, 674.89, 118.64),
        ({"architecture": "uvit", "depth": 28, "hidden_size": 1152, "num_heads": 16}, 500.87, 133.21),
        ({"architecture": "uvit", "depth": 28, "hidden_size": 2048, "num_heads": 32}, 1580.40, 414.82),
    ],
)
def test_denoisers_have_the_published_size_and_cost(network, parameters, gmacs) -> None:
    complexity = denoiser_complexity(denoiser_config(network))
    assert complexity.num_parameters / MILLION == pytest.approx(parameters, abs=0.005)
    assert complexity.macs / BILLION == pytest.approx(gmacs, abs=0.006)


def test_the_facts_of_the_zoo_are_those_of_the_networks() -> None:
    assert AUTOENCODERS[EMBEDDED_AUTOENCODER].scaling_factor == load_autoencoder(prepare=False).scaling_factor
    for entry in (*AUTOENCODERS.values(), *CHANNEL_VARIANTS.values()):
        counted = tuple(Cost(part.num_parameters, part.macs) for part in autoencoder_complexity(entry.config))
        assert entry.costs == counted, entry.name
    for diffusion in DENOISERS.values():
        complexity = denoiser_complexity(diffusion.config)
        assert diffusion.cost == Cost(complexity.num_parameters, complexity.macs), diffusion.name
