"""Compiled networks compute what plain ones do, in one graph without a way back to Python."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dcae_core.errors import ResourceError
from dcae_core.models import compilation
from dcae_core.models.compilation import Compiled, repays_compiling
from dcae_core.models.inference import for_run, prepare_for_inference
from tests.denoisers import random_denoiser
from tests.golden import relative_error
from tests.small import small_autoencoder


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile by a backend that captures and rewrites as on a GPU, without waiting for a C++ compiler."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


@pytest.mark.usefixtures("on_any_device")
@pytest.mark.parametrize("architecture", ["uvit", "dit"])
def test_denoiser(architecture) -> None:
    network = random_denoiser(architecture)
    compiled = for_run(network, 1, "always")
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(0.5), torch.tensor([1, 3])
    with torch.inference_mode():
        first = compiled(x, t, y)
        kept = first.clone()
        assert relative_error(first, network(x, t, y)) < 1e-5
        compiled(x + 1, t, y)  # would overwrite what a recording returned
        assert torch.equal(first, kept)
    assert for_run(compiled, 1, "always") is compiled


@pytest.mark.usefixtures("on_any_device")
def test_autoencoder() -> None:
    plain, fast = small_autoencoder(), small_autoencoder()
    for_run(prepare_for_inference(fast), 1, "always")
    assert isinstance(fast.encoder, Compiled)
    assert isinstance(fast.decoder, Compiled)
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        z = plain.encode(x)
        assert relative_error(fast.encode(x), z) < 1e-5
        assert relative_error(fast.decode(z), plain.decode(z)) < 1e-5


def test_auto_compiles_long_runs_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(compilation, "_can_compile", lambda device: True)
    assert repays_compiling(cuda, compilation.REPAYING_CALLS)
    assert not repays_compiling(cuda, compilation.REPAYING_CALLS - 1)
    assert not repays_compiling(cpu, 10**9)
    assert repays_compiling(cpu, 1, "always")
    assert not repays_compiling(cuda, 10**9, "never")
    monkeypatch.setattr(compilation, "_can_compile", lambda device: False)
    assert not repays_compiling(cuda, compilation.REPAYING_CALLS)


def fail(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend that cannot compile here."""
    raise RuntimeError("no compiler\nand more lines")


def test_where_compiling_fails_auto_goes_on_without_and_always_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", fail)
    network = random_denoiser("uvit")
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor(0.5), torch.tensor([1, 3])
    with torch.inference_mode():
        going_without = Compiled.of(network, "auto")
        assert torch.equal(going_without(x, t, y), network(x, t, y))
        assert "no compiler" in caplog.text
        with pytest.raises(ResourceError, match="no compiler") as failure:
            Compiled.of(network, "always")(x, t, y)
        assert "\n" not in str(failure.value)


@pytest.mark.gpu
def test_recorded_on_a_gpu() -> None:
    network = random_denoiser("uvit").cuda()
    compiled = for_run(network, 1, "always")
    x, t, y = torch.randn(2, 4, 8, 8).cuda(), torch.tensor(0.5).cuda(), torch.tensor([1, 3]).cuda()
    with torch.inference_mode():
        outputs = [compiled(x + number, t, y) for number in range(4)]
        for number, output in enumerate(outputs):
            assert relative_error(output, network(x + number, t, y)) < 1e-4
