"""Compiled networks compute what plain ones do, in one graph without a way back to Python."""

import pytest
import torch

from dcae_core.models.inference import CompiledDenoiser, compile_autoencoder, prepare_for_inference
from tests.denoisers import random_denoiser
from tests.golden import relative_error
from tests.small import small_autoencoder

BACKEND = "aot_eager"  # captures and rewrites as on a GPU, without waiting for a C++ compiler


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("architecture", ["uvit", "dit"])
def test_denoiser(architecture) -> None:
    network = random_denoiser(architecture)
    compiled = CompiledDenoiser(network, BACKEND)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(0.5), torch.tensor([1, 3])
    with torch.inference_mode():
        first = compiled(x, t, y)
        kept = first.clone()
        assert relative_error(first, network(x, t, y)) < 1e-5
        compiled(x + 1, t, y)  # would overwrite what a recording returned
        assert torch.equal(first, kept)


def test_autoencoder() -> None:
    plain, fast = small_autoencoder(), small_autoencoder()
    compile_autoencoder(prepare_for_inference(fast), BACKEND)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        z = plain.encode(x)
        assert relative_error(fast.encode(x), z) < 1e-5
        assert relative_error(fast.decode(z), plain.decode(z)) < 1e-5


@pytest.mark.gpu
def test_recorded_on_a_gpu() -> None:
    network = random_denoiser("uvit").cuda()
    compiled = CompiledDenoiser(network)
    x, t, y = torch.randn(2, 4, 8, 8).cuda(), torch.tensor(0.5).cuda(), torch.tensor([1, 3]).cuda()
    with torch.inference_mode():
        outputs = [compiled(x + number, t, y) for number in range(4)]
        for number, output in enumerate(outputs):
            assert relative_error(output, network(x + number, t, y)) < 1e-4
