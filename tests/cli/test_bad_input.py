"""What is wrong most often, from the shell: one line that says what, where and what to do; nothing is lost."""

import io
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcae_core.checkpoints import save_autoencoder
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small autoencoder, f4."""
    directory = tmp_path_factory.mktemp("models") / "small"
    save_autoencoder(small_autoencoder(), directory)
    return directory


@pytest.fixture
def reconstruct(dcae, model, tmp_path):
    def run(*arguments: object, output: object = None):
        return dcae("reconstruct", *arguments, "--model", model, "-o", output or tmp_path / "out")

    return run


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((96, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60000 x 60000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_IMAGES = {
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "truncated.jpg": jpeg()[: len(jpeg()) // 2],
    "bomb.png": bomb(),
    "noise.png": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named(reconstruct, tmp_path, name) -> None:
    (tmp_path / name).write_bytes(BAD_IMAGES[name])
    reconstruct(tmp_path / name).assert_fails(3, name)
    assert not list(tmp_path.glob("out/*"))


def test_in_a_batch_one_bad_file_is_reported_and_the_others_are_done(reconstruct, tmp_path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "c.jpg"):
        (images / name).write_bytes(jpeg())
    (images / "b.jpg").write_bytes(BAD_IMAGES["truncated.jpg"])
    run = reconstruct(images)
    assert run.exit_code == 3
    assert "b.jpg" in run.stderr
    assert "a.jpg" not in run.stderr
    assert {path.name for path in (tmp_path / "out").rglob("*.recon.png")} == {"a.recon.png", "c.recon.png"}


def test_a_missing_file_is_named(reconstruct, tmp_path) -> None:
    reconstruct(tmp_path / "nowhere.jpg").assert_fails(3, "nowhere.jpg")


def test_a_folder_without_images_is_named(reconstruct, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt.bak").write_text("no image")
    reconstruct(tmp_path / "empty").assert_fails(3, "empty")


def test_a_pattern_that_matches_nothing_is_named(reconstruct, tmp_path) -> None:
    reconstruct(tmp_path / "*.tiff").assert_fails(3, "*.tiff")


def test_without_an_image_the_line_has_a_whole_example(dcae) -> None:
    dcae("reconstruct").assert_fails(2, "dcae reconstruct ")


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "an image é漢.jpg"
    path.write_bytes(jpeg())
    return path


def test_the_good_image_of_these_tests_is_good(reconstruct, image, tmp_path) -> None:
    reconstruct(image).assert_succeeds()
    assert Image.open(tmp_path / "out" / "an image é漢.recon.png").size == (96, 64)


def test_an_unknown_model_suggests_the_nearest(dcae, image, tmp_path) -> None:
    run = dcae("reconstruct", image, "--model", "dc-ae-f64c128-in", "-o", tmp_path / "out")
    run.assert_fails(2, "dc-ae-f64c128-in-1.0")


def test_a_model_that_is_not_cached_offline_says_how_to_get_it(dcae, image, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = dcae("reconstruct", image, "--model", "dc-ae-f64c128-in-1.0", "-o", tmp_path / "out")
    run.assert_fails(5, "config.json", str(tmp_path / "cache"), "dcae models download mit-han-lab/dc-ae-f64c128-in-1.0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_gpu_that_is_not_there_is_told(reconstruct, image) -> None:
    reconstruct(image, "--device", "cuda").assert_fails(4, "device cuda", "take cpu or auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "gpu"), ("gpu", "cuda")),
        (("--dtype", "int8"), ("int8", "bf16")),
        (("--tile", "1"), ("--tile",)),
        (("--resolution", "33"), ("33",)),
        (("--resolution", "-1"), ("resolution",)),
    ],
)
def test_wrong_settings_name_the_right_ones(reconstruct, image, arguments, words) -> None:
    reconstruct(image, *arguments).assert_fails(2, *words)


def test_an_output_that_is_a_file_is_told(reconstruct, image, tmp_path) -> None:
    (tmp_path / "taken").write_text("mine")
    reconstruct(image, output=tmp_path / "taken").assert_fails(4, str(tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def unwritable() -> Path:
    """A place where nobody, root included, can create a directory."""
    if not Path("/proc/self").exists():
        pytest.skip("needs a /proc")
    return Path("/proc/self/out")


def test_an_unwritable_output_is_told(reconstruct, image, unwritable) -> None:
    reconstruct(image, output=unwritable).assert_fails(4, str(unwritable))


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True)
    if os.geteuid() != 0 or mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told_and_leaves_no_half_image(reconstruct, image, tiny_disk) -> None:
    reconstruct(image, output=tiny_disk / "out").assert_fails(4, "disk is full")
    for path in (tiny_disk / "out").glob("*"):
        Image.open(path).load()
    assert not list(tiny_disk.rglob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"not safetensors", struct.pack("<Q", 1 << 60)])
def test_a_latent_file_that_is_none_is_named(dcae, model, tmp_path, content) -> None:
    path = tmp_path / "a.latent.safetensors"
    path.write_bytes(content)
    dcae("decode", path, "--model", model, "-o", tmp_path / "out").assert_fails(3, str(path))


def test_a_latent_of_another_model_is_refused(dcae, reconstruct, image, tmp_path) -> None:
    reconstruct(image, "--save-latents").assert_succeeds()
    latent = next((tmp_path / "out").glob("*.latent.safetensors"))
    save_autoencoder(small_autoencoder(latent_channels=16), tmp_path / "other")
    run = dcae("decode", latent, "--model", tmp_path / "other", "-o", tmp_path / "decoded")
    run.assert_fails(3, latent.name)
