"""Images that take more than they show: refused before their pixels exist, or read in what they need."""

import io
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dcae_core import limits
from dcae_core.data.images import open_image
from dcae_core.errors import ResourceError
from tests.hostile.child import GIB, MIB, run_dcae, run_in_child
from tests.hostile.material import image_bytes, large_webp, png, tar, write


@pytest.fixture
def reconstruct(model, tmp_path):
    def run(*arguments: object, **limits: int):
        plain = ("--plain", "--no-compare", "--model", model, "-o", tmp_path / "out")
        return run_dcae("reconstruct", *arguments, *plain, **limits)

    return run


@pytest.mark.parametrize(("width", "height"), [(10_000_000, 1), (1, 10_000_000)])
def test_a_line_of_ten_million_pixels_is_refused_before_it_is_decoded(reconstruct, tmp_path, width, height) -> None:
    path = write(tmp_path / "line.png", png(width, height))
    run = reconstruct(path)
    run.assert_fails(3, "line.png", "10,000,000", "262,144")
    assert run.peak < 300 * MIB


@pytest.mark.parametrize(
    ("content", "bytes_per_pixel"),
    [
        (lambda side: png(side, side, depth=16, colour=0), 12),
        (lambda side: png(side, side, colour=6), 12),
        (lambda side: large_webp(side, side), 28),
    ],
    ids=["16-bit grey PNG", "RGBA PNG", "WebP"],
)
def test_the_peak_is_a_small_multiple_of_what_the_image_needs(tmp_path, content, bytes_per_pixel) -> None:
    side = 3000
    path = write(tmp_path / "image", content(side))

    def peak() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert open_image(path).size == (side, side)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    taken = run_in_child(peak)
    assert isinstance(taken, int)
    assert taken < bytes_per_pixel * side * side + 32 * MIB


@pytest.mark.parametrize("kind", ["RGBA", "WebP"])
def test_an_image_beyond_the_free_memory_is_told_before_it_is_decoded(reconstruct, tmp_path, kind) -> None:
    content = png(8000, 8000, colour=6) if kind == "RGBA" else large_webp(8000, 8000)
    path = write(tmp_path / "large.img", content)
    run = reconstruct(path, "--resolution", 128, memory=GIB // 4)
    run.assert_fails(4, "large.img", "8000 x 8000", "GB of memory")
    assert run.peak < 200 * MIB


def test_threads_that_decode_large_images_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(limits, "free_memory", lambda: GIB)
    inside, most, lock = 0, 0, threading.Lock()

    def take(_: int) -> None:
        nonlocal inside, most
        with limits.memory_for(GIB // 2 - 1, "an image"):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(16)))
    assert most == 2


def test_more_memory_than_there_is_says_what_needs_it() -> None:
    words = r"b\\x1b\.png needs about 1000000\.0 GB"
    with pytest.raises(ResourceError, match=words), limits.memory_for(10**15, "b\x1b.png"):
        pass


def test_strips_change_no_pixel() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (1300, 1100), dtype=np.uint16)
    deep = Image.fromarray(values)
    buffer = io.BytesIO()
    deep.save(buffer, "PNG", compress_level=1)
    expected = np.floor(values / 257.0 + 0.5).astype(np.uint8)
    assert np.array_equal(np.asarray(open_image(buffer.getvalue()))[:, :, 0], expected)
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (1300, 1100, 4), dtype=np.uint8), "RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    buffer = io.BytesIO()
    rgba.save(buffer, "PNG", compress_level=1)
    assert open_image(buffer.getvalue()).tobytes() == white.tobytes()


def test_a_file_of_a_terabyte_is_not_read(reconstruct, tmp_path) -> None:
    path = write(tmp_path / "hole.webp", image_bytes("WEBP"))
    os.truncate(path, 1 << 40)
    reconstruct(path).assert_fails(3, "hole.webp", "1,099,511,627,776 bytes")


@pytest.mark.parametrize("other", ["a link to itself", "a damaged tar", "a link to nothing"])
def test_in_a_folder_what_cannot_be_read_is_reported_and_the_good_image_done(reconstruct, tmp_path, other) -> None:
    folder = tmp_path / "images"
    write(folder / "good.png", image_bytes())
    name = {"a link to itself": "loop.png", "a damaged tar": "bad.tar", "a link to nothing": "gone.jpg"}[other]
    if other == "a damaged tar":
        write(folder / name, tar({"a.png": image_bytes()})[:700])
    else:
        (folder / name).symlink_to(name if other == "a link to itself" else "nowhere.jpg")
    run = reconstruct(folder)
    assert run.exit_code == 3
    run.assert_clean()
    assert name in run.stderr
    assert (tmp_path / "out" / "good.recon.png").is_file()


def test_libtiff_keeps_its_complaints_to_itself(reconstruct, tmp_path) -> None:
    content = image_bytes("TIFF", compression="tiff_lzw")
    reconstruct(write(tmp_path / "a.tif", content[:8] + b"\xff" * 20 + content[28:])).assert_fails(
        3, "a.tif is damaged"
    )


def test_a_folder_that_links_to_itself_is_searched_once(reconstruct, tmp_path) -> None:
    folder = tmp_path / "images"
    write(folder / "good.png", image_bytes())
    (folder / "again").symlink_to(folder)
    assert reconstruct(folder).exit_code == 0


AWKWARD = ("red\x1b[31m.png", "two\nlines.png", "back\u202egnp.png", "bell\x07.png", os.fsdecode(b"caf\xe9.png"))


def test_control_characters_and_bytes_that_are_no_utf8_are_shown_escaped(reconstruct, tmp_path) -> None:
    folder = tmp_path / "images"
    for name in AWKWARD:
        write(folder / name, image_bytes())
        write(folder / f"damaged {name}", b"no image")
    run = reconstruct(folder)
    assert run.exit_code == 3
    run.assert_clean()
    for name in (r"red\x1b[31m.png", r"two\nlines.png", r"back\u202egnp.png", r"bell\x07.png", r"caf\xe9.png"):
        assert f"images/{name}" in run.stdout
        assert f"images/damaged {name} is not an image" in run.stderr
    assert len(list((tmp_path / "out").glob("*.recon.png"))) == len(AWKWARD)
    reconstruct(tmp_path / "gone\x1b.png").assert_fails(3, r"gone\x1b.png: no such file")


@pytest.mark.parametrize("length", [234, 255])
def test_names_as_long_as_names_can_be_are_shortened_and_the_others_done(reconstruct, tmp_path, length) -> None:
    folder = tmp_path / "images"
    for first in "ab":
        write(folder / (first * (length - 4) + ".png"), image_bytes())
    write(folder / "short.png", image_bytes())
    run = reconstruct(folder, "--save-latents")
    assert run.exit_code == 0, run.stderr
    assert len(list((tmp_path / "out").glob("*.recon.png"))) == 3
    assert len(list((tmp_path / "out").glob("*.latent.safetensors"))) == 3
