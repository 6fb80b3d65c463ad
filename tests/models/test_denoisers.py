"""Diffusion networks against the published ones (golden values from efficientvit), and their settings."""

import pytest
import torch

from dcae_core import create_denoiser
from dcae_core.errors import UsageError
from dcae_core.models import denoiser_config
from dcae_core.zoo import DENOISERS
from tests.denoisers import CLASSES, golden_denoiser, random_denoiser
from tests.golden import golden_noise, golden_tensors, relative_error, state_dict_keys

# Each released model has one of the golden key lists.
KEY_LISTS = {name: f"f{64 if 'f64' in name else 32}-" for name in DENOISERS}
for _name in KEY_LISTS:
    KEY_LISTS[_name] += _name.split("-in-1.0-")[1].split("-in-512px")[0].replace("usit", "uvit")


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


@pytest.mark.parametrize("name", DENOISERS)
def test_parameter_names_and_shapes_are_the_published_ones(name) -> None:
    with torch.device("meta"):
        network = create_denoiser(name)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == state_dict_keys()["original"][KEY_LISTS[name]]


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
