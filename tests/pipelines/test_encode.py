"""Images to latents: exact, the same for any number of processes, and across any kill."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.data.images import center_crop_adm, image_to_tensor, open_image
from dcae_core.data.latents import LatentDataset, verify_dataset
from dcae_core.data.latents.manifest import EncoderRecord
from dcae_core.data.sources import find_images
from dcae_core.errors import DataError, ResourceError, UsageError
from dcae_core.pipelines.encode import encode_dataset
from dcae_core.recipes.encode_dataset import EncodeDatasetRecipe
from dcae_core.weights import fingerprint

from ..processes import run_in_group, start
from ..small import small_autoencoder

NETWORK = small_autoencoder()
ENCODER = EncoderRecord(name="small", fingerprint=fingerprint(NETWORK), scaling_factor=1.0)
SETTINGS = EncodeDatasetRecipe(resolution=16, batch_size=3, latent_dtype="float32", shard_size=4, num_workers=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images(tmp_path) -> Path:
    """Eighteen images in four classes, one of the images damaged."""
    rng = np.random.default_rng(0)
    for number in range(18):
        name = ("100", "2", "ünïcode", "z z")[number % 4]
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(16, 60)), int(rng.integers(16, 60)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number:02d}.png")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / "2" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much of an image")
    return tmp_path / "images"


def encode(folder: Path, out: Path, settings: EncodeDatasetRecipe = SETTINGS, network=NETWORK, encoder=ENCODER):
    images = find_images([folder])
    return encode_dataset(images, network, encoder, out, settings, device=CPU)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def with_settings(**changes) -> EncodeDatasetRecipe:
    return EncodeDatasetRecipe(**{**SETTINGS.model_dump(), **changes})


def latent_of(path: Path) -> torch.Tensor:
    x = image_to_tensor(center_crop_adm(open_image(path), 16))[None]
    with torch.inference_mode():
        return NETWORK.encode(x)[0]


def good_images(images: Path) -> list[Path]:
    return [path for path in sorted(images.rglob("*.png")) if path.name != "05.png"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_latents_are_those_of_the_network_on_the_same_crop(images, tmp_path, dtype, tolerance):
    encode(images, tmp_path / "out", with_settings(batch_size=1, latent_dtype=dtype))
    dataset = LatentDataset(tmp_path / "out")
    paths = good_images(images)
    assert len(dataset) == len(paths) == 17
    for item, path in enumerate(paths):
        latent, label = dataset[item]
        expected = latent_of(path)
        assert torch.equal(latent, expected.to(latent.dtype))
        assert ((latent.float() - expected).abs() <= tolerance * expected.abs() + 1e-7).all()
        assert dataset.manifest.classes[label] == path.parent.name
    assert verify_dataset(tmp_path / "out")[1] == []


def test_batches_change_latents_by_rounding_only(images, tmp_path):
    encode(images, tmp_path / "one", with_settings(batch_size=1))
    encode(images, tmp_path / "many", with_settings(batch_size=5))
    items = range(17)
    one, many = (LatentDataset(tmp_path / name).read(items)[0] for name in ("one", "many"))
    assert (one - many).norm() < 1e-5 * one.norm()


def test_classes_are_sorted_as_text_and_damage_is_listed(images, tmp_path):
    manifest = encode(images, tmp_path / "out").manifest
    assert manifest.classes == ["100", "2", "z z", "ünïcode"]
    (damage,) = manifest.damaged
    assert damage.image == "2/05.png"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert [shard.count for shard in manifest.shards] == [4, 3, 4, 4, 2]


def test_mirrored_copies_follow_their_image(images, tmp_path):
    encode(images, tmp_path / "out", with_settings(flipped_copies=True, batch_size=1))
    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == 34
    for place, path in enumerate(good_images(images)):
        x = image_to_tensor(center_crop_adm(open_image(path), 16))[None]
        with torch.inference_mode():
            assert torch.equal(dataset[2 * place][0], NETWORK.encode(x)[0])
            assert torch.equal(dataset[2 * place + 1][0], NETWORK.encode(x.flip(-1))[0])
        assert dataset[2 * place][1] == dataset[2 * place + 1][1]


def test_statistics_are_those_of_the_stored_latents(images, tmp_path):
    statistics = encode(images, tmp_path / "out").manifest.statistics
    latents, _ = LatentDataset(tmp_path / "out").read(range(17))
    assert statistics.channel_mean == pytest.approx(latents.double().mean((0, 2, 3)).tolist())
    assert statistics.rms == pytest.approx(latents.double().square().mean().sqrt().item())


def test_three_processes_write_the_bytes_of_one(images, tmp_path):
    encode(images, tmp_path / "one")
    run_in_group(3, lambda: encode(images, tmp_path / "three"))
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


class _Slow:
    spatial_compression_ratio, latent_channels = 4, 8

    def encode(self, x):
        time.sleep(0.01)
        return NETWORK.encode(x)


def test_runs_killed_twenty_times_end_with_the_same_bytes(images, tmp_path):
    """Four datasets, each killed five times on its way and then continued to the end."""
    settings = with_settings(shard_size=1, batch_size=1)
    encode(images, tmp_path / "whole", settings)
    rng = random.Random(0)
    for dataset in range(4):
        out = tmp_path / f"killed{dataset}"
        for kill in range(5):
            run = start(lambda out=out: encode(images, out, settings, network=_Slow()))
            while run.is_alive() and len(list(out.glob("shard-*.json"))) < 3 * kill:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
            run.kill()
            run.join()
            assert run.exitcode in (-signal.SIGKILL, 0)
        finished = len(list(out.glob("shard-*.json"))) if not (out / "manifest.json").exists() else 17
        report = encode(images, out, settings)
        assert report.kept in (finished, finished - 1)  # the damaged image's shard has no items
        assert finished > 0
        assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_dataset_is_kept_whole(images, tmp_path):
    assert encode(images, tmp_path / "out").kept == 0
    before = contents(tmp_path / "out")
    report = encode(images, tmp_path / "out")
    assert report.kept == 17
    assert report.encoder_rate is None
    assert contents(tmp_path / "out") == before


def test_a_continued_run_does_only_what_is_left(images, tmp_path):
    stopping = []

    def stop_after_two_shards(_):
        stopping.append(1)
        if len(stopping) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(
            find_images([images]), NETWORK, ENCODER, tmp_path / "out", SETTINGS,
            device=CPU, advance=stop_after_two_shards,
        )  # fmt: skip
    report = encode(images, tmp_path / "out")
    assert report.kept == 7
    assert report.encoder_rate > 0
    assert 0 <= report.waited <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 20}, "transform.resolution: 16 there, 20 now"),
        ({"batch_size": 4}, "encoding.batch_size: 3 there, 4 now"),
        ({"latent_dtype": "float16"}, "dtype: 'float32' there, 'float16' now"),
    ],
)
def test_a_directory_of_other_settings_is_refused(images, tmp_path, change, message):
    encode(images, tmp_path / "out")
    with pytest.raises(UsageError, match=message):
        encode(images, tmp_path / "out", with_settings(**change))


def test_another_encoder_and_other_images_are_refused(images, tmp_path):
    encode(images, tmp_path / "out")
    other = ENCODER.model_copy(update={"fingerprint": "b" * 64})
    with pytest.raises(UsageError, match=r"encoder\.fingerprint"):
        encode(images, tmp_path / "out", encoder=other)
    (images / "2" / "01.png").rename(images / "2" / "renamed.png")
    with pytest.raises(UsageError, match=r"encoding\.pictures_sha256"):
        encode(images, tmp_path / "out")


def test_two_runs_on_one_directory_are_refused(images, tmp_path):
    waiting = multiprocessing.get_context("fork").Event()

    def slow(_):
        waiting.set()
        time.sleep(60)

    first = start(
        lambda: encode_dataset(
            find_images([images]),
            NETWORK,
            ENCODER,
            tmp_path / "out",
            SETTINGS,
            device=CPU,
            advance=slow,
        )
    )
    assert waiting.wait(30)
    with pytest.raises(UsageError, match="is being written by another run"):
        encode(images, tmp_path / "out")
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert encode(images, tmp_path / "out").manifest.count == 17


def test_damage_can_be_fatal(images, tmp_path):
    with pytest.raises(DataError, match=r"05\.png"):
        encode(images, tmp_path / "out", with_settings(damaged="fail"))


def test_nothing_but_damage_is_an_error(images, tmp_path):
    for path in good_images(images):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 18 images can be decoded"):
        encode(images, tmp_path / "out")


def test_the_resolution_must_fit_the_network(images, tmp_path):
    with pytest.raises(UsageError, match=r"resolution 18 is no multiple of 4.*take 16"):
        encode(images, tmp_path / "out", with_settings(resolution=18))
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_class_among_others_is_refused(images, tmp_path):
    Image.new("RGB", (20, 20)).save(images / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png has no class"):
        encode(images, tmp_path / "out")


def test_room_on_the_disk_is_asked_for_first(images, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(ResourceError, match=r"needs about .* GB more"):
        encode(images, tmp_path / "out")


def test_latents_that_overflow_are_refused_by_name(images, tmp_path):
    class Loud:
        spatial_compression_ratio, latent_channels = 4, 8

        def encode(self, x):
            return NETWORK.encode(x) * 1e6

    with pytest.raises(DataError, match=r"100/00\.png is not finite in float16"):
        encode(images, tmp_path / "out", with_settings(latent_dtype="float16"), network=Loud())


def test_a_scaling_factor_far_from_the_encoders_is_warned_of(images, tmp_path, monkeypatch):
    monkeypatch.setattr("dcae_core.pipelines.encode.ENOUGH_LATENTS", 1)
    rms = encode(images, tmp_path / "a").manifest.statistics.rms
    fitting = ENCODER.model_copy(update={"scaling_factor": 1.04 / rms})
    (warning,) = encode(
        images, tmp_path / "a2", encoder=ENCODER.model_copy(update={"scaling_factor": 1.06 / rms})
    ).warnings
    assert "-6% from small's scaling factor" in warning
    assert encode(images, tmp_path / "b", encoder=fitting).warnings == []


def test_a_few_latents_say_nothing_about_the_scaling_factor(images, tmp_path):
    encoder = ENCODER.model_copy(update={"scaling_factor": 1000.0})
    assert encode(images, tmp_path / "out", encoder=encoder).warnings == []
