"""Diffusion models from directories: the released layout, runs of our own, and what is wrong with bad ones."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dcae_core import load_diffusion
from dcae_core.checkpoints.denoisers import locate_diffusion, read_diffusion
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.zoo import AUTOENCODERS, DENOISERS, Cost, DenoiserEntry
from tests.denoisers import CLASSES, random_denoiser
from tests.diffusion_models import SCALING_FACTOR, write_autoencoder, write_diffusion, write_released
from tests.golden import golden_noise, golden_state, golden_tensors, relative_error, state_dict_keys
from tests.models.test_denoisers import published_shapes

RELEASED = [name for name, entry in DENOISERS.items() if entry.hub_id]
# One model for each list of keys; usit-3b's is that of usit-2b with more blocks, and 12 GB.
DISTINCT = {str(published_shapes(name)): name for name in RELEASED if "usit-3b" not in name}.values()


def prefixed(shapes: dict[str, list[int]], prefix: str) -> dict[str, list[int]]:
    return {prefix + key: shape for key, shape in shapes.items()}


def autoencoder_shapes(name: str) -> dict[str, list[int]]:
    keys = state_dict_keys()
    return prefixed(keys["original"][keys["autoencoders"][DENOISERS[name].autoencoder]], "autoencoder.")


def test_a_directory_laid_out_like_the_hubs_loads_and_computes_the_golden_values(tmp_path) -> None:
    name = "dc-ae-f32c32-in-1.0-uvit-s-in-512px"
    weights = golden_state(state_dict_keys()["original"]["f32-uvit-s"], "diffusion_model.")
    directory = write_released(tmp_path / "model", name, weights, autoencoder_shapes(name))
    parts = read_diffusion(locate_diffusion(directory))
    with torch.no_grad():
        output = parts.denoiser(golden_noise("s", (2, 32, 16, 16)), torch.tensor([5, 600]), CLASSES[:2])
    assert relative_error(output, golden_tensors("diffusion")["uvit_s_f32.forward"]) < 1e-5
    assert (parts.prediction, parts.scaling_factor) == ("epsilon", 0.3189)
    assert (parts.autoencoder.latent_channels, parts.autoencoder.spatial_compression_ratio) == (32, 32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", DISTINCT)
def test_every_released_key_list_loads_strictly(tmp_path, name) -> None:
    zeros = prefixed(published_shapes(name), "diffusion_model.") | autoencoder_shapes(name)
    directory = write_released(tmp_path / "model", name, {}, zeros)
    parts = read_diffusion(locate_diffusion(directory))
    assert parts.config == DENOISERS[name].config
    assert parts.autoencoder.config == AUTOENCODERS[DENOISERS[name].autoencoder].config
    shutil.rmtree(directory)


def test_a_checkpoint_of_the_network_alone_takes_its_autoencoder_from_elsewhere(tmp_path, monkeypatch) -> None:
    entry = DENOISERS["dc-ae-f32c32-in-1.0-usit-h-in-512px"]
    small = random_denoiser("uvit")
    entry_of_small = replace(entry, config=small.config, prediction="velocity", autoencoder="none")
    monkeypatch.setitem(DENOISERS, entry.name, entry_of_small)
    monkeypatch.setitem(AUTOENCODERS, "none", AUTOENCODERS[entry.autoencoder])
    autoencoder = write_autoencoder(tmp_path / "autoencoder")
    for number, prefix in enumerate(("diffusion_model.", "")):
        weights = {prefix + key: tensor for key, tensor in small.state_dict().items()}
        directory = write_released(tmp_path / str(number), entry.name, weights)
        parts = read_diffusion(locate_diffusion(directory), autoencoder=autoencoder)
        assert torch.equal(parts.denoiser.pos_embed, small.pos_embed)
        lone = directory / f"{entry.name}.safetensors"
        shutil.copy(directory / "model.safetensors", lone)
        assert locate_diffusion(lone).prediction == "velocity"


def test_adaptive_channels_take_the_autoencoder_with_fewer(tmp_path, monkeypatch) -> None:
    """A network of 8 adaptive channels beside an autoencoder of 4: it makes 4, where another refuses."""
    autoencoder = write_autoencoder(tmp_path / "autoencoder")
    for adaptive in (True, False):
        small = random_denoiser("uvit", in_channels=8, adaptive_channels=adaptive)
        entry = DenoiserEntry("adaptive", small.config, "velocity", "none", Cost(0, 0), "none/none")
        monkeypatch.setitem(DENOISERS, entry.name, entry)
        monkeypatch.setitem(AUTOENCODERS, "none", AUTOENCODERS["dc-ae-f64c128-1.5"])
        directory = write_released(tmp_path / str(adaptive), entry.name, small.state_dict())
        if not adaptive:
            with pytest.raises(CheckpointError, match=r"has 4 latent channels, the diffusion network .* makes 8"):
                read_diffusion(locate_diffusion(directory), autoencoder=autoencoder)
            continue
        generated = load_diffusion(directory, autoencoder=autoencoder).generate([1], num_steps=2, sampler="euler")
        assert generated.latents.shape == (1, 4, 8, 8)


def test_normalised_latents_are_undone_before_they_are_decoded(tmp_path) -> None:
    """The network's own output, times each channel's deviation, plus its mean; nobody has to ask for it."""
    plain, normalised = write_diffusion(tmp_path / "plain"), write_diffusion(tmp_path / "normalised")
    statistics = {"mean": [1.0, -2.0, 0.0, 0.5], "std": [0.5, 1.0, 2.0, 4.0]}
    for directory, change in ((plain, {"scaling_factor": 1.0}), (normalised, {"normalisation": statistics})):
        description = json.loads((directory / "dcae.json").read_text())
        description["diffusion"] |= change
        (directory / "dcae.json").write_text(json.dumps(description))
    made, undone = (
        load_diffusion(directory).generate([1, 2], num_steps=2, seed=3).latents for directory in (plain, normalised)
    )
    mean, std = (torch.tensor(statistics[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(undone, made * std + mean)


def test_a_training_run_gives_its_average_or_its_raw_weights(tmp_path) -> None:
    run = write_diffusion(tmp_path / "run", "epsilon_variance")
    network = random_denoiser("dit")
    for step, value in ((90, 1.0), (100, 2.0)):
        directory = run / "checkpoints" / f"step_{step}"
        directory.mkdir(parents=True)
        raw = {key: torch.full_like(tensor, value) for key, tensor in network.state_dict().items()}
        average = {key: torch.full_like(tensor, value + 0.5) for key, tensor in network.named_parameters()}
        save_file(raw, directory / "model.safetensors")
        save_file(average, directory / "ema.safetensors")
        (directory / "state.json").write_text("{}")
    (run / "checkpoints" / "latest").write_text("step_100")
    found = {
        (place.name, kind): read_diffusion(locate_diffusion(place, weights=kind)).denoiser
        for place in (run, run / "checkpoints" / "step_90")
        for kind in ("ema", "raw")
    }
    values = {key: denoiser.final_layer.linear.bias[0].item() for key, denoiser in found.items()}
    assert values == {("run", "ema"): 2.5, ("run", "raw"): 2.0, ("step_90", "ema"): 1.5, ("step_90", "raw"): 1.0}
    assert (found["run", "ema"].pos_embed == 2.0).all(), "a table that is not trained has no average"
    with pytest.raises(UsageError, match="ema or raw"):
        locate_diffusion(run, weights="best")


def test_number_type_and_scaling_factor(tmp_path) -> None:
    pipeline = load_diffusion(write_diffusion(tmp_path / "model"), dtype=torch.bfloat16)
    assert {p.dtype for p in pipeline.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipeline.autoencoder.parameters()} == {torch.bfloat16}
    assert pipeline.scaling_factor == SCALING_FACTOR


def test_what_is_wrong_with_a_model_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = write_diffusion(tmp_path / "model")
    other = write_diffusion(tmp_path / "other", hidden_size=64)
    shutil.copy(other / "model.safetensors", model / "model.safetensors")
    broken = write_diffusion(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    strange = write_diffusion(tmp_path / "strange")
    (strange / "dcae.json").write_text(json.dumps({"diffusion": {"config": {"architecture": "unet"}}}))
    unnamed = write_diffusion(tmp_path / "unnamed")
    described = json.loads((unnamed / "dcae.json").read_text())
    described["diffusion"]["autoencoder"] = ["a", "b"]
    (unnamed / "dcae.json").write_text(json.dumps(described))
    autoencoder_only = tmp_path / "autoencoder-only"
    autoencoder_only.mkdir()
    (autoencoder_only / "config.json").write_text(json.dumps({"model_name": "dc-ae-f32c32-in-1.0"}))
    (autoencoder_only / "model.safetensors").touch()
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    eight = write_autoencoder(tmp_path / "eight", latent_channels=8)

    def load(place, **options):
        return lambda: read_diffusion(locate_diffusion(place), **options)

    for call, kind, words in (
        (load(model), CheckpointError, "does not fit the network"),
        (load(broken), CheckpointError, "damaged"),
        (load(strange), CheckpointError, "unet"),
        (load(unnamed), CheckpointError, "no name or place"),
        (load(autoencoder_only), CheckpointError, "no released diffusion model"),
        (load(tmp_path / "empty"), CheckpointError, "no checkpoint yet"),
        (load(eight), CheckpointError, "no diffusion model"),
        (load(other, autoencoder=eight), CheckpointError, "8 latent channels"),
        (load("dc-ae-f32c32-in-1.0-uvit-x"), UsageError, "did you mean"),
        (load("nowhere/at/all"), CheckpointError, "no directory or file"),
        (load("dc-ae-f32c32-in-1.0-uvit-s-in-512px"), DownloadError, "dcae models download"),
    ):
        with pytest.raises(kind, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
