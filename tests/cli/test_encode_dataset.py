"""`dcae encode-dataset`: options and recipes, verification, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from dcae_core.checkpoints import save_autoencoder
from dcae_core.data.latents import LatentDataset
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
from dcae_core.recipes.loading import load_recipe, shipped_recipes

from ..small import small_autoencoder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and seven images in two classes."""
    directory = tmp_path_factory.mktemp("places")
    network = small_autoencoder()
    network.scaling_factor = 0.5
    save_autoencoder(network, directory / "model", layout="dcae")
    for number in range(7):
        folder = directory / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return directory


@pytest.fixture
def encode(dcae, places):
    def run(*arguments):
        options = ("--images", places / "images", "--model", places / "model", "--resolution", 16, "--shard-size", 2)
        return dcae("encode-dataset", *options, *arguments)

    return run


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_encoding_verifying_and_continuing(dcae, encode, tmp_path):
    run = encode("--out", tmp_path / "out", "--json")
    run.assert_succeeds()
    facts = json.loads(run.stdout)
    assert facts["latents"] == 7
    assert facts["kept"] == 0
    assert facts["shards"] == 4
    assert facts["latent_shape"] == [8, 4, 4]
    assert facts["encoder_images_per_second"] > 0
    assert facts["decoder_images_per_second"] > 0
    whole = contents(tmp_path / "out")

    verified = dcae("encode-dataset", "--verify", tmp_path / "out")
    verified.assert_succeeds()
    assert "7 latents in 4 shards, every checksum is right" in verified.stdout

    again = encode("--out", tmp_path / "out", "--json")
    again.assert_succeeds()
    assert json.loads(again.stdout)["kept"] == 7
    assert contents(tmp_path / "out") == whole


def test_two_processes_write_the_bytes_of_one(encode, tmp_path):
    encode("--out", tmp_path / "one").assert_succeeds()
    assert encode("--out", tmp_path / "two", "--nproc", 2).exit_code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_damage_is_named(dcae, encode, tmp_path):
    out = tmp_path / "out"
    encode("--out", out).assert_succeeds()
    flipped = bytearray((out / "shard-000001.safetensors").read_bytes())
    flipped[-20] ^= 1
    (out / "shard-000001.safetensors").write_bytes(flipped)
    dcae("encode-dataset", "--verify", out).assert_fails(3, "shard-000001.safetensors is damaged")
    shutil.copy(out / "shard-000000.safetensors", out / "shard-000001.safetensors")
    dcae("encode-dataset", "--verify", out).assert_fails(3, "is a duplicate of shard shard-000000.safetensors")
    (out / "shard-000001.safetensors").unlink()
    run = dcae("encode-dataset", "--verify", out, "--json")
    run.assert_fails(3, "shard-000001.safetensors is missing")
    assert len(json.loads(run.stdout)["faults"]) == 1
    dcae("encode-dataset", "--verify", tmp_path / "nowhere").assert_fails(3, "manifest.json is missing")


def test_damaged_images_are_listed_and_left_out(dcae, places, tmp_path):
    shutil.copytree(places / "images", tmp_path / "images")
    (tmp_path / "images" / "a" / "2.png").write_bytes(b"")
    options = ("--images", tmp_path / "images", "--model", places / "model", "--resolution", 16)
    run = dcae("encode-dataset", *options, "--out", tmp_path / "out")
    run.assert_succeeds()
    assert "left out: a/2.png is empty" in run.stderr
    dcae("encode-dataset", *options, "--out", tmp_path / "fatal", "--damaged", "fail").assert_fails(3, "2.png is empty")


def test_a_recipe_with_options_on_top(dcae, places, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"command: encode-dataset\nimages: {places / 'images'}\nmodel: {places / 'model'}\n"
        "resolution: 64\nbatch_size: 2\n"
    )
    run = dcae("encode-dataset", recipe, "--out", tmp_path / "out", "--resolution", 16, "--flip", "--json")
    run.assert_succeeds()
    assert json.loads(run.stdout)["latents"] == 14
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["transform"] == {"resolution": 16, "crop": "adm", "apply_exif": True, "flipped_copies": True}
    assert manifest["encoding"]["batch_size"] == 2
    assert manifest["encoder"]["name"] == "model"


def test_all_faults_of_a_recipe_come_at_once(dcae, tmp_path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("command: encode-dataset\nresolutoin: 256\nlatent_dtype: int8\nbatch_size: 0\n")
    run = dcae("encode-dataset", recipe, "--out", tmp_path / "out")
    assert run.exit_code == 2
    for words in ("has 3 faults", "did you mean 'resolution'", "latent_dtype", "batch_size"):
        assert words in run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, ["missing --out", "example: dcae encode-dataset --images"]),
        (("--out", "{out}", "--resolution", "18"), 2, ["18 is no multiple of 4", "take 16"]),
        (("--out", "{out}", "--latent-dtype", "int8"), 2, ["latent_dtype"]),
        (("--out", "{out}", "--images", "{out}/nowhere"), 3, ["nowhere"]),
        (("--out", "{out}", "--model", "dc-ae-f33"), 2, ["dc-ae-f33"]),
        (("--out", "{out}", "--device", "cuda:99"), 4, ["cuda"]),
        (("--out", "/proc/nothing"), 4, ["/proc/nothing"]),
        (("--verify", "{out}/nowhere"), 3, ["manifest.json is missing"]),
    ],
)
def test_bad_input_is_one_line(encode, tmp_path, arguments, code, words):
    run = encode(*(argument.replace("{out}", str(tmp_path / "out")) for argument in arguments))
    run.assert_fails(code, *words)
    assert not (tmp_path / "out").exists()


def test_every_shipped_recipe_is_valid():
    names = [name for name in shipped_recipes() if name.startswith("encode_dataset/")]
    assert len(names) >= 3
    for name in names:
        load_recipe(name, EncodeDatasetRecipe)


def test_transparency_is_dropped_where_asked_and_the_manifest_says_so(dcae, encode, tmp_path):
    """White is not written down: manifests of earlier versions mean it, and keep their text."""
    Image.new("RGBA", (20, 20), (200, 40, 90, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (20, 20), (200, 40, 90)).save(tmp_path / "solid.png")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    shards = {}
    for name, options in {"drop": ("--alpha", "drop"), "default": ()}.items():
        out = tmp_path / f"{name}-latents"
        run = encode("--images", tmp_path / "*.png", "--out", out, "--latent-dtype", "float32", *options)
        run.assert_succeeds()
        shards[name] = LatentDataset(out).read(range(3))[0]  # clear, solid, white
        transform = json.loads((out / "manifest.json").read_text())["transform"]
        assert transform.get("alpha") == ("drop" if name == "drop" else None)
        assert LatentDataset(out).manifest.transform.alpha == ("drop" if name == "drop" else "white")
    np.testing.assert_allclose(shards["drop"][0], shards["drop"][1], atol=1e-5)
    np.testing.assert_allclose(shards["default"][0], shards["default"][2], atol=1e-5)
    encode("--out", tmp_path / "drop-latents", "--alpha", "white").assert_fails(2, "other settings")
    encode("--out", tmp_path / "none", "--alpha", "black").assert_fails(2, "alpha")


def test_leading_channels_of_a_model_are_a_dataset_of_so_many(dcae, places, encode, tmp_path):
    """`MODEL-c3`: the manifest says three channels and who made them, and the values are the whole's first three."""
    network = small_autoencoder(latent_shortcuts=False)
    save_autoencoder(network, tmp_path / "structured", layout="dcae")
    settings = ("--latent-dtype", "float32", "--model")
    encode("--out", tmp_path / "whole", *settings, tmp_path / "structured").assert_succeeds()
    encode("--out", tmp_path / "three", *settings, tmp_path / "structured-c3").assert_succeeds()
    whole, three = LatentDataset(tmp_path / "whole"), LatentDataset(tmp_path / "three")
    assert three.manifest.latent_shape == (3, 4, 4)
    assert three.manifest.encoder.name == "structured-c3"
    assert three.manifest.encoder.fingerprint != whole.manifest.encoder.fingerprint
    np.testing.assert_allclose(three.read(range(7))[0], whole.read(range(7))[0][:, :3], atol=1e-5)
    run = dcae(
        "eval", "--images", places / "images", "--model", tmp_path / "structured-c3", "--resolution", 16, "--json"
    )
    run.assert_succeeds()
    assert len(json.loads(run.stdout)["latent"]["channel_mean"]) == 3
    images = sorted((places / "images" / "a").glob("*.png"))[:1]
    run = dcae("reconstruct", *images, "--model", tmp_path / "structured-c3", "-o", tmp_path / "out", "--save-latents")
    run.assert_succeeds()
    [latent] = (tmp_path / "out").glob("*.latent.safetensors")
    assert load_file(latent)["latent"].shape[0] == 3
    encode("--out", tmp_path / "many", "--model", tmp_path / "structured-c9").assert_fails(2, "8 channels; -c9")
