import pytest
import torch
from torch import nn

from dcae_core.devices import ProcessorFamily
from dcae_core.models.winograd import RULES, Rule, Step, WinogradConv2d, rule_for, transform_weight, winograd_conv2d
from tests.golden import relative_error

INTEL, AMD = ProcessorFamily("Intel", "AVX-512"), ProcessorFamily("AMD", "AVX2")
AMD_AVX512 = ProcessorFamily("AMD", "AVX-512")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 30), (4, 130), (1, 5), (35, 3)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_the_convolution_at_any_size(height, width, channels_last):
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 20, 3, padding=1)
    x = torch.randn(2, 12, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours = winograd_conv2d(x, transform_weight(conv.weight), conv.bias)
        assert relative_error(ours, conv(x)) < 1e-5


@pytest.mark.parametrize("keep_transformed", [True, False])
def test_the_layer_takes_the_fast_way_only_where_it_holds(keep_transformed, monkeypatch):
    calls = []
    monkeypatch.setattr("dcae_core.models.winograd.winograd_conv2d", lambda *a: calls.append(a) or winograd_conv2d(*a))
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    fast = WinogradConv2d(conv, keep_transformed, rule_for(INTEL))
    x = torch.randn(1, 128, 16, 16)
    with torch.no_grad():
        for _ in range(2):
            assert relative_error(fast(x), conv(x)) < 1e-5
    assert len(calls) == 2
    assert torch.equal(fast(x), conv(x))  # with gradients
    with torch.no_grad():
        assert torch.equal(fast(x[:, :, :4, :4]), conv(x[:, :, :4, :4]))  # too small to pay
        assert torch.equal(fast.double()(x.double()), conv.double()(x.double()))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("family", "fast", "plain"),
    [
        (INTEL, [(128, 64), (256, 64), (1024, 16)], [(64, 64), (256, 8)]),
        (AMD_AVX512, [(1024, 32), (1024, 16)], [(256, 256), (512, 128), (512, 64), (1024, 64), (1024, 8)]),
        (
            AMD,
            [(512, 64), (512, 128), (1024, 32), (1024, 16)],
            [(128, 512), (256, 256), (256, 64), (512, 32), (1024, 8)],
        ),
        (ProcessorFamily("Intel", "AVX2"), [], [(128, 64), (1024, 32)]),
        (ProcessorFamily("", "AVX2"), [], [(128, 64), (1024, 32)]),
        (ProcessorFamily("", ""), [], [(128, 64), (1024, 32)]),
    ],
)
def test_a_family_takes_the_fast_way_only_where_it_was_measured_to_pay(family, fast, plain):
    rule = rule_for(family)
    for channels, side in fast:
        assert rule.pays(channels, channels, side, side), (channels, side)
        assert rule.ever_pays(channels, channels)
    for channels, side in plain:
        assert not rule.pays(channels, channels, side, side), (channels, side)


def test_the_narrower_side_and_the_number_of_tiles_decide():
    rule = Rule((Step(256, 64, 128), Step(512, 16)), "made up")
    assert rule.pays(256, 1024, 32, 32)
    assert not rule.pays(1024, 128, 32, 32)
    assert rule.pays(256, 256, 61, 8 * 4)  # 16 by 8 tiles, the last row of them part empty
    assert not rule.pays(256, 256, 65, 8 * 4)
    assert rule.pays(512, 512, 65, 8 * 4)
    assert rule.ever_pays(256, 256)
    assert not rule.ever_pays(1024, 255)


def test_a_rule_says_in_words_what_it_does_and_why():
    assert "1024 channels on with 16 to 64 tiles" in str(rule_for(AMD_AVX512))
    assert "Zen 5" in str(rule_for(AMD_AVX512))
    assert str(rule_for(ProcessorFamily("", ""))) == "plain everywhere (not measured on such a processor)"


@pytest.mark.parametrize("family", RULES, ids=str)
@pytest.mark.parametrize(("channels", "side"), [(128, 16), (256, 64), (512, 32), (1024, 16)])
def test_every_route_of_every_family_equals_the_convolution(family, channels, side):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    x = torch.randn(1, channels, side, side)
    with torch.inference_mode():
        routed, plain = WinogradConv2d(conv, True, rule_for(family))(x), conv(x)
    assert relative_error(routed, plain) < 1e-5
    assert torch.equal(routed, plain) != rule_for(family).pays(channels, channels, side, side)
