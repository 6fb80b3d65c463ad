"""Diffusion networks against the published ones (golden values from efficientvit), and their settings."""

import re

import pytest
import torch

from dcae_core import create_denoiser
from dcae_core.errors import UsageError
from dcae_core.models.configs import denoiser_config
from dcae_core.models.denoiser import Attention
from dcae_core.zoo import DENOISERS
from tests.denoisers import CLASSES, golden_denoiser, random_denoiser
from tests.golden import golden_noise, golden_tensors, relative_error, state_dict_keys


def published_shapes(name: str) -> dict[str, list[int]]:
    """The golden keys and shapes of a released model; those of DC-Gen differ from them in what they say here."""
    stride = 64 if "f64" in name else 32
    size = re.split("-in-1.0-|-1.5-", name)[1].split("-in-512px")[0].replace("usit", "uvit")
    if size == "sit-xl":  # no learned variance: half the output
        shapes = dict(state_dict_keys()["original"]["f32-dit-xl"])
        return shapes | {"final_layer.linear.weight": [32, 1152], "final_layer.linear.bias": [32]}
    if size == "uvit-3b":  # twice the depth
        shapes = dict(state_dict_keys()["original"]["f64-uvit-2b"])
        blocks = {key: shape for key, shape in shapes.items() if re.match(r"(in|out)_blocks", key)}
        return shapes | {
            re.sub(r"blocks\.(\d+)", lambda match: f"blocks.{int(match[1]) + 14}", key): shape
            for key, shape in blocks.items()
        }
    return state_dict_keys()["original"][f"f{stride}-{size}"]


@pytest.mark.parametrize(
    ("name", "noise_name", "times"),
    [
        ("uvit_tiny", "x", [1, 250.5, 777, 1000]),
        ("uvit_tiny_p2", "x2", [0.25, 0.9]),
        ("dit_tiny", "x", [1, 250, 777, 1000]),
        ("uvit_s_f32", "s", [5, 600]),
    ],
)
def test_one_evaluation_equals_the_published_one(name, noise_name, times) -> None:
    network = golden_denoiser(name)
    x = golden_noise(noise_name, (len(times), network.config.in_channels, *network.config.latent_size))
    with torch.no_grad():
        output = network(x, torch.tensor(times), CLASSES[: len(times)])
    assert relative_error(output, golden_tensors("diffusion")[f"{name}.forward"]) < 1e-5


@pytest.mark.parametrize("name", [name for name, entry in DENOISERS.items() if entry.hub_id])
def test_parameter_names_and_shapes_are_the_published_ones(name) -> None:
    with torch.device("meta"):
        network = create_denoiser(name)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == published_shapes(name)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_leading_channels_alone_are_what_zeros_in_the_others_are(patch_size) -> None:
    """Adaptive channels share the weights of the first channels; the keys are those of a network without."""
    network = random_denoiser("uvit", in_channels=8, patch_size=patch_size, adaptive_channels=True)
    plain = random_denoiser("uvit", in_channels=8, patch_size=patch_size)
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    x, t, y = golden_noise("x", (2, 8, 8, 8)), torch.tensor(0.4), torch.tensor([1, 2])
    whole = network(x, t, y)
    for channels in (1, 3, 7):
        padded = torch.cat([x[:, :channels], torch.zeros_like(x[:, channels:])], dim=1)
        torch.testing.assert_close(network(x[:, :channels], t, y), network(padded, t, y)[:, :channels])
    plain.load_state_dict(network.state_dict())
    assert torch.equal(plain(x, t, y), whole)
    with pytest.raises(UsageError, match=r"takes latents \(B, 8, 8, 8\), not \(2, 5, 8, 8\)"):
        plain(x[:, :5], t, y)
    with pytest.raises(UsageError, match="takes latents"):
        network(torch.cat([x, x], dim=1), t, y)


@pytest.mark.parametrize("architecture", ["uvit", "dit"])
def test_queries_and_keys_are_normed_in_each_head(architecture) -> None:
    """Scaling queries and keys up then changes nothing; the other parameters are those of a network without."""
    network, plain = random_denoiser(architecture, qk_norm=True), random_denoiser(architecture)
    extra = network.state_dict().keys() - plain.state_dict().keys()
    assert extra == {key for key in network.state_dict() if ".attn.q_norm." in key or ".attn.k_norm." in key}
    assert len(extra) == 2 * sum(isinstance(module, Attention) for module in network.modules())
    x, t, y = golden_noise("x", (2, 4, 8, 8)), torch.tensor(0.4), torch.tensor([1, 2])
    before = network(x, t, y)
    attention = next(module for module in network.modules() if isinstance(module, Attention))
    tokens = torch.randn(2, 5, attention.qkv.in_features, generator=torch.Generator().manual_seed(0))
    width = attention.q_norm.weight.numel()
    q, k, v = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, width)).unbind(2)
    q, k = (
        each / (each.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for each, norm in ((q, attention.q_norm), (k, attention.k_norm))
    )
    weights = torch.softmax(torch.einsum("bnhd,bmhd->bhnm", q, k) / width**0.5, dim=-1)
    expected = attention.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Attention):
                module.qkv.weight[: 2 * module.qkv.in_features] *= 100
                if module.qkv.bias is not None:
                    module.qkv.bias[: 2 * module.qkv.in_features] *= 100
    torch.testing.assert_close(network(x, t, y), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["uvit", "dit"])
def test_rectangles_patches_and_no_classes(architecture) -> None:
    network = random_denoiser(architecture, input_size=(6, 12), patch_size=3, num_classes=0)
    x = golden_noise("x", (2, 4, 6, 12))
    output = network(x, torch.tensor(0.5))
    assert output.shape == (2, network.config.out_channels, 6, 12)
    assert torch.equal(output, network(x, torch.tensor([0.5, 0.5])))
    # the network tells rows from columns: positions are not shared between transposed places
    square = random_denoiser(architecture, input_size=6)
    y = torch.tensor([1, 2])
    turned = square(x[..., :6].mT, torch.tensor(0.5), y).mT
    assert not torch.allclose(square(x[..., :6], torch.tensor(0.5), y), turned, atol=1e-3)


def test_half_precision_attention_and_its_float32_parity_mode() -> None:
    """fp16 and bf16 stay finite and near float32 with the golden weights; the parity mode is at least as near."""
    x = golden_noise("x", (4, 32, 8, 8))
    t = torch.tensor([1, 250.5, 777, 1000])
    exact = golden_tensors("diffusion")["uvit_tiny.forward"]
    for dtype, bound in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        errors = []
        for parity in (False, True):
            network = golden_denoiser("uvit_tiny", attention_float32=parity).to(dtype)
            with torch.no_grad():
                output = network(x.to(dtype), t, CLASSES)
            assert output.dtype == dtype
            errors.append(relative_error(output, exact))
        assert max(errors) < bound


def test_initial_weights() -> None:
    uvit = create_denoiser("uvit", hidden_size=128, depth=2, num_heads=4, input_size=8)
    linear = uvit.in_blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not linear.bias.any()
    assert uvit.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    dit = create_denoiser("dit", hidden_size=128, depth=2, num_heads=4, input_size=8)
    x = golden_noise("x", (2, 32, 8, 8))
    assert not dit(x, torch.tensor(7), torch.tensor([0, 1])).any(), "zero gates and output: predicts nothing at first"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_denoiser("uvot"), "uvit"),
        (lambda: create_denoiser("uvit", dpeth=4), "depth"),
        (lambda: create_denoiser("uvit", depth=5), "even"),
        (lambda: create_denoiser("uvit", hidden_size=100, num_heads=8), "num_heads"),
        (lambda: create_denoiser("dit", input_size=9, patch_size=2), "patch_size"),
        (lambda: create_denoiser("dit", num_heads=0), "num_heads"),
        (lambda: create_denoiser("uvit", depth=10**9), "depth must be a whole number"),
        (lambda: create_denoiser("uvit", hidden_size=1.5), "hidden_size must be a whole number"),
        (lambda: create_denoiser("uvit", input_size="16"), "input_size must be a whole number"),
        (lambda: create_denoiser("uvit", input_size=(8, 8, 8)), "(height, width)"),
        (lambda: create_denoiser("uvit", num_classes=-1), "num_classes"),
        (lambda: create_denoiser("dit", learned_variance="no"), "learned_variance"),
        (lambda: denoiser_config({"architecture": "unet"}), "uvit"),
        (
            lambda: random_denoiser("uvit")(torch.zeros(1, 3, 8, 8), torch.tensor(1.0), torch.tensor([0])),
            "(B, 4, 8, 8)",
        ),
    ],
)
def test_wrong_settings_are_named(call, message) -> None:
    with pytest.raises(UsageError) as raised:
        call()
    assert message in str(raised.value)


def test_a_configuration_survives_json() -> None:
    import json

    config = create_denoiser("dit", input_size=(4, 8), depth=1, num_classes=3).config
    assert denoiser_config(json.loads(json.dumps(config.to_dict()))) == config
