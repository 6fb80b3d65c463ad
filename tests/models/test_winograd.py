import pytest
import torch
from torch import nn

from dcae_core.models.winograd import WinogradConv2d, pays, transform_weight, winograd_conv2d
from tests.golden import relative_error


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
    fast = WinogradConv2d(conv, keep_transformed)
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


def test_small_maps_and_few_channels_go_the_plain_way():
    assert pays(256, 256, 64, 64)
    assert not pays(64, 256, 64, 64)
    assert not pays(256, 256, 8, 8)
