"""`--compile`: every command runs the very network that `dcae bench` measures, and says the same of the same run."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcae_core.benchmarking import measuring
from dcae_core.models import compilation, inference
from tests.diffusion_models import write_diffusion
from tests.training.small_runs import write_images

ASKING = (
    "dcae_core.benchmarking.subjects",
    "dcae_core.pipelines.encode",
    "dcae_core.pipelines.evaluation.plans",
    "dcae_core.pipelines.generate",
    "dcae_core.pipelines.image_files",
)
AUTOENCODER_COMMANDS = {
    "bench": ("bench", "encode", "--resolution", "64", "--repeats", "1"),
    "reconstruct": ("reconstruct", "IMAGES", "--resolution", "64", "-o", "OUT"),
    "encode-dataset": ("encode-dataset", "--images", "IMAGES", "--resolution", "64", "--batch-size", "1", "-o", "OUT"),
    "eval": ("eval", "--images", "IMAGES", "--resolution", "64", "--psnr", "--batch-size", "1", "--work", "OUT"),
}
DENOISER_COMMANDS = {
    "bench": ("bench", "denoise", "--resolution", "64", "--repeats", "1"),
    "bench sample": ("bench", "sample", "--resolution", "64", "--repeats", "1", "--steps", "2"),
    "sample": ("sample", "--num", "1", "--steps", "2", "-o", "OUT"),
}


def description(network: nn.Module) -> dict[str, Any]:
    """All that speed depends on, beside the machine."""
    parameters = {
        name: (value.dtype, value.shape, value.stride(), value.requires_grad)
        for name, value in network.named_parameters()
    }
    return (
        {name: type(module) for name, module in network.named_modules()} | parameters | {"training": network.training}
    )


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Descriptions of the networks that commands take, in turn."""
    descriptions: list[dict[str, Any]] = []

    def note(network: nn.Module, *how: Any) -> nn.Module:
        taken = inference.for_run(network, *how)
        descriptions.append(description(taken))
        return taken

    for name in ASKING:
        monkeypatch.setattr(importlib.import_module(name), "for_run", note)
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    monkeypatch.setitem(measuring._MATRIX_SIDE, "cpu", 256)
    monkeypatch.setitem(measuring._COPY_BYTES, "cpu", 2**20)
    yield descriptions
    torch.compiler.reset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "epsilon"
    write_diffusion(directory, "epsilon")
    return directory


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_commands_run_the_autoencoder_that_bench_measures(dcae, used, model, tmp_path, mode) -> None:
    write_images(tmp_path / "images", count=2, size=80)
    autoencoder = json.loads((model / "dcae.json").read_text())["diffusion"]["autoencoder"]
    taken = _taken_by(AUTOENCODER_COMMANDS, dcae, used, autoencoder, tmp_path, mode)
    assert all(networks == [taken["bench"][0]] for networks in taken.values())
    assert (taken["bench"][0]["encoder"] is compilation.Compiled) == (mode == "always")


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_commands_run_the_denoiser_that_bench_measures(dcae, used, model, tmp_path, mode) -> None:
    taken = _taken_by(DENOISER_COMMANDS, dcae, used, model, tmp_path, mode)
    measured = taken["bench"][0]
    assert all(measured in networks for networks in taken.values())
    assert (measured[""] is compilation.Compiled) == (mode == "always")


def _taken_by(
    commands: dict[str, tuple[str, ...]], dcae: Callable[..., Any], used: list[Any], model: Any, place: Path, mode: str
) -> dict[str, list[Any]]:
    taken = {}
    for name, command in commands.items():
        places = {"IMAGES": place / "images", "OUT": place / name}
        arguments = [places.get(argument, argument) for argument in command]
        dcae(*arguments, "--model", model, "--compile", mode).assert_succeeds()
        taken[name], used[:] = list(used), []
    return taken


def test_no_such_mode_and_no_one_shape(dcae, tmp_path) -> None:
    write_images(tmp_path, count=1, size=80)
    dcae("reconstruct", tmp_path, "--compile", "alway", "-o", tmp_path / "out").assert_fails(2, "--compile", "always")
    dcae("eval", "--images", tmp_path, "--compile", "sometimes").assert_fails(2, "compile", "auto")
    run = dcae("reconstruct", tmp_path, "--compile", "always", "-o", tmp_path / "out")
    run.assert_fails(2, "--resolution")
