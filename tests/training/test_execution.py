"""The same training computed in other ways; what comes out of it; what it says about itself."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dcae_core.checkpoints import load_autoencoder
from dcae_core.data.images import image_to_tensor
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.metrics.lpips import LPIPS
from dcae_core.metrics.reconstruction import psnr
from dcae_core.training.dry_run import forecast_autoencoder, forecast_phase
from dcae_core.training.parallel import checkpoint_activations
from dcae_core.training.run import RunOptions
from dcae_core.training.run_directory import RunDirectory
from dcae_core.training.trackers import Panel, draw_panels
from dcae_core.training.trained_parts import count_trained, transformer_blocks
from tests.denoisers import random_denoiser
from tests.golden import golden_noise
from tests.small import small_config
from tests.training.small_runs import (
    GAN,
    NETWORK,
    assert_same,
    checkpoint_contents,
    losses_of,
    phase,
    recipe_for,
    train,
    write_images,
)

CPU = torch.device("cpu")


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_autoencoder(folder / "autoencoder", prepare=False).state_dict()


def test_activation_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    for name, switched_on in (("kept", False), ("again", True)):
        execution = {"activation_checkpointing": switched_on}
        train(recipe_for(tmp_path, phase(accumulation=2), run_dir=str(tmp_path / name), execution=execution))
    contents = [checkpoint_contents(RunDirectory(tmp_path / name).latest()) for name in ("kept", "again")]
    assert_same(*contents)


def test_activation_checkpointing_keeps_less(tmp_path: Path) -> None:
    activations = [
        forecast_phase(recipe, recipe.phases[0]).memory.activations
        for switched_on in (False, True)
        if (recipe := recipe_for(tmp_path, execution={"activation_checkpointing": switched_on}))
    ]
    assert activations[1] < 0.7 * activations[0]


def denoiser(architecture: str, checkpointing: bool) -> torch.nn.Module:
    network = random_denoiser(architecture)
    if checkpointing:
        checkpoint_activations(transformer_blocks(network))
    return network


@pytest.mark.parametrize("architecture", ["uvit", "dit"])
def test_activation_checkpointing_of_a_denoiser_changes_no_gradient(architecture) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = denoiser(architecture, checkpointing)
        network(golden_noise("x", (2, 4, 8, 8)), torch.tensor(3.0), torch.tensor([0, 5])).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, saved in zip(*gradients, strict=True):
        torch.testing.assert_close(saved, plain, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_of_a_denoiser_compiles() -> None:
    gradients = []
    for compiled in (False, True):
        network = denoiser("uvit", True)
        if compiled:
            network.compile(backend="aot_eager", fullgraph=True)
        network(golden_noise("x", (2, 4, 8, 8)), torch.tensor(3.0), torch.tensor([0, 5])).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, plain, rtol=1e-4, atol=1e-6)


def test_activation_checkpointing_of_a_denoiser_keeps_fewer_activations() -> None:
    def kept_bytes(checkpointing: bool) -> int:
        network = denoiser("uvit", checkpointing)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            network(golden_noise("x", (2, 4, 8, 8)), torch.tensor(3.0), torch.tensor([0, 5]))
        return sum(kept)

    assert kept_bytes(True) < kept_bytes(False) / 3


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [({"channels_last": True}, 2e-4), ({"precision": "bf16"}, 1e-2), ({"precision": "fp16"}, 1e-2)],
)
def test_other_number_types_and_layouts_train_nearly_the_same(
    execution: dict, tolerance: float, tmp_path: Path
) -> None:
    gan = {"l1": 1.0, "adversarial": GAN}
    for name, options in (("plain", {}), ("other", execution)):
        phases = [phase(), phase("local_refinement", losses=gan)]
        train(recipe_for(tmp_path, *phases, run_dir=str(tmp_path / name), execution=options))
    plain, other = trained_weights(tmp_path / "plain"), trained_weights(tmp_path / "other")
    for name, value in plain.items():
        if value.is_floating_point():
            assert (value - other[name]).abs().max() < tolerance, name
            assert other[name].isfinite().all()


@pytest.mark.slow
def test_compiled_network_trains_nearly_the_same(tmp_path: Path) -> None:
    for name, switched_on in (("plain", False), ("compiled", True)):
        train(recipe_for(tmp_path, run_dir=str(tmp_path / name), execution={"compile": switched_on}))
    plain, compiled = trained_weights(tmp_path / "plain"), trained_weights(tmp_path / "compiled")
    for name, value in plain.items():
        if value.is_floating_point():
            assert (value - compiled[name]).abs().max() < 1e-3, name


def test_training_learns(tmp_path: Path) -> None:
    """From noise to something that resembles the images, in a few seconds."""
    train(recipe_for(tmp_path, phase(steps=60, optimiser={"learning_rate": 3e-3, "schedule": "cosine"})))
    losses = [record["l1"] for record in losses_of(tmp_path / "run") if "l1" in record]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_result_opens_in_diffusers(tmp_path: Path) -> None:
    """A configuration that AutoencoderDC can express, trained, with equal output and its scaling factor."""
    diffusers = pytest.importorskip("diffusers")
    config = small_config(depths=(0, 1, 1), blocks=("res", "res", "res")).to_dict()
    directory = train(recipe_for(tmp_path, network={"model": "custom", "config": config}))
    ours = load_autoencoder(directory, prepare=False)
    theirs = diffusers.AutoencoderDC.from_pretrained(directory).eval()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent = ours.encode(x)
        assert torch.allclose(latent, theirs.encode(x).latent, atol=1e-5)
        assert torch.allclose(ours.decode(latent), theirs.decode(latent).sample, atol=1e-5)
    assert theirs.config.scaling_factor == pytest.approx(ours.scaling_factor)


def test_scaling_factor_is_one_over_the_rms_of_latents(tmp_path: Path) -> None:
    directory = train(recipe_for(tmp_path, latent_statistics_images=64))
    network = load_autoencoder(directory, prepare=False)
    images = [Image.open(path).resize((16, 16)) for path in sorted((tmp_path / "images").glob("*.png"))]
    with torch.no_grad():
        latents = network.encode(torch.stack([image_to_tensor(image) for image in images]))
    assert network.scaling_factor == pytest.approx(1 / latents.square().mean().sqrt().item(), rel=0.25)
    statistics = json.loads((directory / "dcae.json").read_text())["metadata"]["latent_statistics"]
    assert statistics["num_images"] == 64
    assert len(statistics["channel_mean"]) == 4


def test_validation_measures_the_averages_on_8_bit_crops(tmp_path: Path) -> None:
    folder = recipe_for(tmp_path) and tmp_path / "images"
    validation = {"path": str(folder), "resolution": 16, "num_images": 3, "every": 1000, "batch_size": 2}
    directory = train(recipe_for(tmp_path, validation=validation))
    network = load_autoencoder(directory, prepare=False)
    from dcae_core.data.images import center_crop_adm, tensor_to_uint8

    crops = [center_crop_adm(Image.open(path), 16) for path in sorted(folder.glob("*.png"))[:3]]
    x = torch.stack([image_to_tensor(crop) for crop in crops])
    with torch.no_grad():
        expected = psnr(tensor_to_uint8(x), tensor_to_uint8(network(x))).mean().item()
    records = [record for record in losses_of(tmp_path / "run") if "validation.psnr" in record]
    assert [record["step"] for record in records] == [0, 4]
    assert records[1]["validation.psnr"] == pytest.approx(expected, abs=1e-3)
    assert Image.open(tmp_path / "run" / "samples" / "step_4.png").size == (3 * 16, 2 * 16)
    assert Image.open(tmp_path / "run" / "metrics.png").width > 100


def test_lpips_trains_from_files_at_hand_and_says_so_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    losses = {"l1": 1.0, "lpips": 1.0, "lpips_network": "alex"}
    with pytest.raises(DownloadError, match="alexnet"):
        train(recipe_for(tmp_path, phase(losses=losses)))
    module, folder = LPIPS("alex"), tmp_path / "weights"
    folder.mkdir()
    features = {f"features.{name}": value for name, value in module.features.state_dict().items()}
    torch.save(features, folder / "alexnet-owt-7be5be79.pth")
    heads = {f"lin{name.split('.')[0]}.model.1.weight": value for name, value in module.heads.state_dict().items()}
    torch.save(heads, folder / "lpips-v0.1-alex-df73285e.pth")
    losses["lpips_weights"] = str(folder)
    train(recipe_for(tmp_path, phase(losses=losses, resolution=32, steps=1), run_dir=str(tmp_path / "lpips")))
    assert losses_of(tmp_path / "lpips")[0]["lpips"] != 0
    save_file({"a": torch.zeros(1)}, tmp_path / "weights" / "lpips-v0.1-alex-df73285e.pth")
    with pytest.raises(CheckpointError):
        train(recipe_for(tmp_path, phase(losses=losses, resolution=32), run_dir=str(tmp_path / "damaged")))


def test_dry_run_tells_and_leaves_nothing(tmp_path: Path) -> None:
    gan = {"l1": 1.0, "adversarial": GAN}
    recipe = recipe_for(tmp_path, phase(), phase("latent_adaptation"), phase("local_refinement", losses=gan))
    before = sorted(tmp_path.rglob("*"))
    found = forecast_autoencoder(recipe, RunOptions(CPU))
    assert sorted(tmp_path.rglob("*")) == before
    assert found.num_items == 10
    assert found.loader_items_per_second > 0
    assert set(found.seconds_per_step) == {"full", "latent_adaptation", "local_refinement"}
    train(recipe)
    network = load_autoencoder(tmp_path / "run" / "autoencoder", prepare=False)
    full, adaptation, refinement = found.phases
    assert full.num_parameters == full.num_trained == count_trained(network.requires_grad_(True))[1]
    assert refinement.num_trained == sum(parameter.numel() for parameter in network.decoder.head.parameters())
    assert full.memory.training == 16 * full.num_trained
    assert full.memory.activations > adaptation.memory.activations > refinement.memory.activations


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'dcae\[tensorboard\]'"):
        train(recipe_for(tmp_path, logging={"tensorboard": True}))


class _FakeWandb(SimpleNamespace):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, object]]] = []
        super().__init__(Image=lambda path: ("image", Path(path).name), init=lambda **_: self)

    def log(self, values: dict[str, object], step: int) -> None:
        self.logged.append((step, values))


def test_trackers_get_the_images_of_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    validation = {"path": str(write_images(tmp_path / "held out")), "resolution": 16, "num_images": 2, "every": 1}
    train(recipe_for(tmp_path, phase(steps=2), logging={"wandb_project": "p", "every": 1}, validation=validation))
    shown = [(step, values["samples"]) for step, values in fake.logged if "samples" in values]
    assert shown == [(step, ("image", f"step_{step}.png")) for step in (0, 1, 2)]
    assert {step for step, values in fake.logged if "validation.psnr" in values} == {0, 1, 2}


def test_chart_draws_what_it_is_given(tmp_path: Path) -> None:
    curves = {"falling": [(x, 10.0 / (x + 1)) for x in range(5000)], "odd": [(0, float("nan")), (1, -1.0), (2, 1.0)]}
    draw_panels(
        [Panel("loss", curves, logarithmic=True), Panel("flat", {"a": [(0, 1.0), (1, 1.0)]})], tmp_path / "a.png"
    )
    image = Image.open(tmp_path / "a.png").convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(31, 111, 180), (255, 255, 255)} <= colours
    draw_panels([Panel("nothing", {})], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_residual_shortcuts_are_a_setting(tmp_path: Path) -> None:
    config = NETWORK | {"residual_shortcuts": False}
    directory = train(recipe_for(tmp_path, network={"model": "custom", "config": config}))
    assert load_autoencoder(directory, prepare=False).config.residual_shortcuts is False
