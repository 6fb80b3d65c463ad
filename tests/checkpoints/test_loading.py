import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcae_core import load_autoencoder
from dcae_core.checkpoints import save_autoencoder
from dcae_core.checkpoints.layouts import to_original
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.weights import fingerprint, read_weights
from dcae_core.zoo import AUTOENCODERS, CHANNEL_VARIANTS, AutoencoderEntry, Cost
from tests.small import SMALL_CONFIGS, randomise, small_autoencoder

NAME = "dc-ae-f4c8-test-1.0"


@pytest.fixture
def network(monkeypatch):
    """A small network that the zoo knows by name, so that the original layout can hold it."""
    network = Autoencoder(SMALL_CONFIGS["1.0"])
    randomise(network)
    network.scaling_factor = 0.25
    costs = (Cost(1, 1), Cost(1, 1))
    entry = AutoencoderEntry(NAME, network.config, 0.25, costs, f"mit-han-lab/{NAME}", f"mit-han-lab/{NAME}-diffusers")
    monkeypatch.setitem(AUTOENCODERS, NAME, entry)
    return network.eval()


def reconstruct(model):
    loaded = load_autoencoder(model)
    with torch.inference_mode():
        return loaded(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)), loaded


@pytest.mark.parametrize("layout", ["original", "diffusers", "dcae"])
def test_every_layout_gives_the_same_network_back(network, tmp_path, layout):
    save_autoencoder(network, tmp_path / "m", layout=layout, name=NAME)
    loaded = load_autoencoder(tmp_path / "m", prepare=False)
    assert fingerprint(loaded) == fingerprint(network)
    assert loaded.scaling_factor == 0.25


def test_original_directory_diffusers_directory_and_pt_reconstruct_alike(network, tmp_path):
    save_autoencoder(network, tmp_path / "original", layout="original", name=NAME)
    save_autoencoder(network, tmp_path / "diffusers", layout="diffusers")
    state = to_original(network.config, network.state_dict())
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pt")
    torch.save(state, tmp_path / f"{NAME}.pt")
    expected, _ = reconstruct(tmp_path / "original")
    for place in ("diffusers", "weights.pt", f"{NAME}.pt"):
        assert torch.equal(reconstruct(tmp_path / place)[0], expected)


def test_saved_directory_opens_in_diffusers(network, tmp_path):
    from diffusers import AutoencoderDC

    save_autoencoder(network, tmp_path / "m")
    peer = AutoencoderDC.from_pretrained(tmp_path / "m")
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(peer(x).sample, load_autoencoder(tmp_path / "m")(x), rtol=1e-5, atol=1e-5)
    assert peer.config.scaling_factor == 0.25


def test_diffusers_weights_in_several_parts_are_put_together(network, tmp_path):
    from diffusers import AutoencoderDC

    save_autoencoder(network, tmp_path / "whole", layout="diffusers")
    directory = tmp_path / "parts"
    AutoencoderDC.from_pretrained(tmp_path / "whole").save_pretrained(directory, max_shard_size="20KB")
    parts = sorted(directory.glob("*-of-*.safetensors"))
    assert len(parts) > 1
    assert fingerprint(load_autoencoder(directory, prepare=False)) == fingerprint(network)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=f"has no {parts[0].name}, which its index names"):
        load_autoencoder(directory)


def test_pipeline_repository_with_a_vae_folder_is_opened(network, tmp_path):
    save_autoencoder(network, tmp_path / "pipeline" / "vae", layout="diffusers")
    assert fingerprint(load_autoencoder(tmp_path / "pipeline", prepare=False)) == fingerprint(network)


def edit_weights(directory: Path, change):
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.project_in.main.conv.bias"), "1 missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected .extra."),
        (lambda s: s.update({"decoder.project_in.main.conv.bias": torch.zeros(7)}), r"\(7,\) where the network has"),
        (lambda s: s["decoder.project_in.main.conv.bias"].fill_(float("nan")), "NaN"),
    ],
)
def test_weights_that_do_not_fit_are_named(network, tmp_path, change, message):
    save_autoencoder(network, tmp_path / "m", layout="original", name=NAME)
    edit_weights(tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=message):
        load_autoencoder(tmp_path / "m")


def test_truncated_and_bit_flipped_files_are_refused(network, tmp_path):
    save_autoencoder(network, tmp_path / "m", layout="dcae")
    weights = tmp_path / "m" / "weights-1.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_autoencoder(tmp_path / "m")
    (tmp_path / "cut.safetensors").write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        read_weights(tmp_path / "cut.safetensors")


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_malicious_pickle_is_refused_and_never_executed(tmp_path, suffix):
    marker, path = tmp_path / "executed", tmp_path / f"model{suffix}"
    torch.save({"weight": Malicious(marker)}, path)
    with pytest.raises(CheckpointError, match="can run code"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(CheckpointError):
        read_weights(path)
    assert not marker.exists()


def test_places_without_a_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "no-such"}))
    with pytest.raises(CheckpointError, match="no released autoencoder"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_autoencoder(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean .*dc-ae-f32c32-in-1\.0"):
        load_autoencoder("dc-ae-f32c32-in")


def put_into_cache(cache: Path, repository: str, files: dict[str, bytes]) -> None:
    """Lay files out as huggingface_hub's cache does: a blob by its SHA-256, a link to it in a snapshot."""
    import hashlib

    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_cached_hub_repository_is_used_and_verified(network, tmp_path, hub_cache, layout):
    save_autoencoder(network, tmp_path / "m", layout=layout, name=NAME)
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir() if path.name != "dcae.json"}
    repository = f"mit-han-lab/{NAME}" + ("-diffusers" if layout == "diffusers" else "")
    put_into_cache(hub_cache, repository, files)
    for asked in (NAME, f"mit-han-lab/{NAME}"):
        if asked == NAME or layout == "original":
            assert fingerprint(load_autoencoder(asked, prepare=False)) == fingerprint(network)
    blob = next(path for path in hub_cache.rglob("blobs/*") if path.stat().st_size > 10_000)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_autoencoder(NAME)


def test_an_empty_cache_without_a_network_says_how_to_place_the_file(network, hub_cache):
    with pytest.raises(DownloadError, match=r"config\.json of mit-han-lab/.* not in the cache .*--model DIR"):
        load_autoencoder(NAME)


@pytest.mark.parametrize("name", [None, "dc-ae-f32c32-tiny-1.0", "mit-han-lab/dc-ae-f32c32-tiny-1.0"])
def test_embedded_weights_are_the_default_and_have_a_name(name):
    assert load_autoencoder(name).config == AUTOENCODERS["dc-ae-f32c32-tiny-1.0"].config


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("dcae.json", {"scaling_factor": "large"}),
        ("dcae.json", {"scaling_factor": -1}),
        ("dcae.json", {"layout": "other"}),
        ("dcae.json", {"name": 7}),
        ("dcae.json", {"config": 7}),
        ("dcae.json", {"weights": ["model.safetensors"]}),
        ("config.json", {"scaling_factor": float("nan")}),
        ("config.json", {"encoder_block_out_channels": 32}),
        ("config.json", {"encoder_block_out_channels": [10**9] * 3}),
        ("config.json", {"encoder_layers_per_block": [1, 10**9, 1]}),
        ("config.json", {"encoder_qkv_multiscales": 5}),
        ("config.json", {"latent_channels": True}),
    ],
)
def test_a_configuration_with_values_of_another_kind_is_refused(network, tmp_path, file, changes):
    save_autoencoder(network, tmp_path / "m", layout="dcae" if file == "dcae.json" else "diffusers")
    if file != "dcae.json":
        (tmp_path / "m" / "dcae.json").unlink()
    values = json.loads((tmp_path / "m" / file).read_text())
    (tmp_path / "m" / file).write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=file):
        load_autoencoder(tmp_path / "m")


def test_a_bit_flip_in_the_embedded_file_is_noticed(tmp_path):
    from dcae_core.zoo import EMBEDDED_AUTOENCODER, embedded_directory

    shutil.copytree(embedded_directory(EMBEDDED_AUTOENCODER), tmp_path / "m")
    weights = tmp_path / "m" / "weights-1.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_autoencoder(tmp_path / "m")


def test_writing_replaces_a_directory_whole_or_not_at_all(network, tmp_path, monkeypatch):
    save_autoencoder(network, tmp_path / "m")
    before = fingerprint(load_autoencoder(tmp_path / "m", prepare=False))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcae_core.checkpoints.saving.save_file", fail)
    with pytest.raises(Exception, match="disk is full"):
        save_autoencoder(small_autoencoder(seed=5), tmp_path / "m")
    assert fingerprint(load_autoencoder(tmp_path / "m", prepare=False)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_our_own_layout_keeps_files_small_and_readable_by_others(network, tmp_path, monkeypatch):
    monkeypatch.setattr("dcae_core.checkpoints.saving._MAX_FILE_BYTES", 10_000)
    previous = os.umask(0o022)
    try:
        save_autoencoder(network, tmp_path / "m", layout="dcae")
    finally:
        os.umask(previous)
    files = sorted((tmp_path / "m").glob("weights-*.safetensors"))
    assert len(files) > 3
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 12_000 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in files)
    assert fingerprint(load_autoencoder(tmp_path / "m", prepare=False)) == fingerprint(network)


@pytest.fixture
def structured(monkeypatch, tmp_path):
    """A small network without shortcuts at its latent, which the zoo knows with 3 leading channels."""
    network = Autoencoder(SMALL_CONFIGS["1.0"].replace(latent_shortcuts=False))
    randomise(network)
    network.scaling_factor = 0.25
    entry = AutoencoderEntry(NAME, network.config, 0.25, (Cost(0, 0), Cost(0, 0)), None)
    monkeypatch.setitem(AUTOENCODERS, NAME, entry)
    leading = dataclasses.replace(
        entry, name=f"{NAME}-c3", config=entry.config.replace(latent_channels=3), whole=entry.name
    )
    monkeypatch.setitem(CHANNEL_VARIANTS, leading.name, leading)
    save_autoencoder(network, tmp_path / NAME, layout="dcae")
    save_file(to_original(network.config, network.state_dict()), tmp_path / f"{NAME}.safetensors")
    return network.eval()


def test_leading_channels_are_the_whole_with_zeros_in_the_others(structured, tmp_path) -> None:
    """By the name of a local directory, of a weights file, and of a weights file called as the zoo calls it."""
    (tmp_path / "by_name").mkdir()
    shutil.copy(tmp_path / f"{NAME}.safetensors", tmp_path / "by_name" / f"{NAME}-c3.safetensors")
    x = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.inference_mode():
        latent = structured.encode(x)
        padded = torch.cat([latent[:, :3], torch.zeros_like(latent[:, 3:])], dim=1)
        for place in (f"{NAME}-c3", f"{NAME}-c3.safetensors", f"by_name/{NAME}-c3.safetensors"):
            loaded = load_autoencoder(tmp_path / place, prepare=False)
            assert (loaded.latent_channels, loaded.scaling_factor) == (3, 0.25)
            torch.testing.assert_close(loaded.encode(x), latent[:, :3])
            torch.testing.assert_close(loaded.decode(latent[:, :3]), structured.decode(padded))


def test_leading_channels_that_cannot_be_are_one_line(structured, network, tmp_path) -> None:
    channels = structured.latent_channels
    with pytest.raises(UsageError, match=f"{channels} channels; -c{channels} asks for too many"):
        load_autoencoder(tmp_path / f"{NAME}-c{channels}")
    save_autoencoder(network, tmp_path / "shortcuts", layout="dcae")
    with pytest.raises(UsageError, match="shortcuts over all channels"):
        load_autoencoder(tmp_path / "shortcuts-c3")
    with pytest.raises(CheckpointError, match="no directory or file"):
        load_autoencoder(tmp_path / "missing-c3")
