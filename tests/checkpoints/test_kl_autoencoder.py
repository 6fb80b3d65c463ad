"""KL autoencoders, the baselines, beside diffusers' own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dcae_core.checkpoints import load_autoencoder, save_autoencoder
from dcae_core.data.images import uint8_to_tensor
from dcae_core.data.latents import LatentDataset
from dcae_core.data.sources import find_images
from dcae_core.diffusion.guidance import sample_noise
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.pipelines.encode import encode_dataset, load_encoder
from dcae_core.pipelines.tiling import choose_tile
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
from dcae_core.weights import fingerprint

from ..processes import one_thread

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")


@pytest.fixture(params=[0.0, 0.1159])
def saved(tmp_path, request):
    """A small AutoencoderKL, f = 2, in a pipeline's `vae/`; without and with FLUX's shift."""
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.3611,
        shift_factor=request.param or None,
    ).eval()
    network.save_pretrained(tmp_path / "model" / "vae")
    return tmp_path / "model", network, request.param


@torch.inference_mode()
def test_it_does_what_diffusers_does(saved):
    directory, network, shift = saved
    ours = load_autoencoder(directory)
    assert (ours.spatial_compression_ratio, ours.latent_channels, ours.scaling_factor) == (2, 4, 0.3611)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    posterior = network.encode(x).latent_dist
    assert torch.allclose(ours.encode(x), posterior.mean - shift, atol=1e-5)
    noise = torch.randn(posterior.mean.shape)
    assert torch.allclose(ours.encode(x, noise), posterior.mean + posterior.std * noise - shift, atol=1e-5)
    assert choose_tile(ours, 64, 64) is None
    assert choose_tile(ours, 10**5, 10**5) is not None
    assert torch.allclose(ours(x), network.decode(posterior.mean).sample, atol=1e-5)


@pytest.mark.parametrize("layout", ["config", "latents_stats.pt", "latents_stats.safetensors"])
@torch.inference_mode()
def test_a_mean_and_deviation_for_each_channel_are_applied_and_undone(saved, layout):
    """In diffusers' configuration, or in the file that LightningDiT keeps beside VA-VAE's latents."""
    directory, network, shift = saved
    plain = load_autoencoder(directory)
    mean, std = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([1.5, 0.5, 3.0, 1.0])
    if layout == "config":
        config = directory / "vae" / "config.json"
        values = json.loads(config.read_text()) | {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        config.write_text(json.dumps(values))
    else:
        statistics = {"mean": mean[None, :, None, None], "std": std[None, :, None, None]}
        (torch.save if layout.endswith(".pt") else save_file)(statistics, directory / "vae" / layout)
    ours = load_autoencoder(directory)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    posterior = network.encode(x).latent_dist
    expected = (posterior.mean - shift - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(ours.encode(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
    assert fingerprint(ours) != fingerprint(plain)


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "3 channel means for 4 channels"),
        ({"mean": torch.zeros(4), "std": torch.zeros(4)}, "channel 0 has a standard deviation of 0"),
        ({"mean": torch.zeros(4)}, "has no mean and std"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(saved, statistics, words):
    directory, _, _ = saved
    save_file(statistics, directory / "vae" / "latents_stats.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_autoencoder(directory)


@one_thread
@torch.inference_mode()
def test_stored_latents_are_drawn_with_each_images_own_noise(saved, tmp_path):
    directory, _, _ = saved
    for number in range(3):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 60 + number).convert("RGB").save(tmp_path / "images" / "a" / f"{number}.png")
    network, encoder = load_encoder(str(directory), device=CPU, dtype=torch.float32)
    images = find_images([tmp_path / "images"])
    settings = EncodeDatasetRecipe(
        resolution=8, batch_size=1, latent_dtype="float32", num_workers=1, flipped_copies=True, seed=7
    )
    encode_dataset(images, network, encoder, tmp_path / "out", settings, device=CPU)
    dataset = LatentDataset(tmp_path / "out")
    for item in range(6):
        with Image.open(images[item // 2].path) as image:
            pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        x = uint8_to_tensor(pixels.flip(-1) if item % 2 else pixels)
        assert torch.equal(dataset[item][0], network.encode(x, sample_noise(7, [item], (4, 4, 4)))[0])


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "cut", "absent"])
def test_weights_that_do_not_fit_are_refused(saved, damage):
    directory, _, _ = saved
    file = directory / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        del weights["encoder.conv_in.bias"]
    elif damage == "extra":
        weights["unheard.of"] = torch.zeros(1)
    elif damage == "shape":
        weights["encoder.conv_in.bias"] = torch.zeros(9)
    save_file(weights, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "absent":
        file.unlink()
    with pytest.raises(CheckpointError, match="vae"):
        load_autoencoder(directory)


def test_other_classes_are_left_to_others(saved):
    directory, _, _ = saved
    config = directory / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(CheckpointError, match="describes no deep-compression autoencoder"):
        load_autoencoder(directory)


def test_a_pipeline_on_the_hub_is_found_by_its_vae(saved, monkeypatch):
    directory, _, _ = saved

    def fetch(repository, files, revision=None, *, offline=False):
        if not all((directory / file).is_file() for file in files):
            raise UsageError(f"hub repository {repository} has no file {files[0]}")
        return directory

    monkeypatch.setattr("dcae_core.checkpoints.hub.fetch_files", fetch)
    assert load_autoencoder("someone/a-pipeline").scaling_factor == 0.3611


def test_our_layouts_do_not_hold_one(saved, tmp_path):
    directory, _, _ = saved
    with pytest.raises(UsageError, match="deep-compression autoencoders only"):
        save_autoencoder(load_autoencoder(directory, prepare=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()
