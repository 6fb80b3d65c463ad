import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcae_core.data.images import center_crop_adm, image_to_tensor, open_image, tensor_to_uint8, uint8_to_image
from dcae_core.errors import DataError
from tests.golden import golden_tensors

TEST_IMAGES = Path(__file__).parents[2] / "examples" / "test_images"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(content: bytes, x: int = 0, y: int = 0, **options) -> tuple[int, int, int]:
    image = open_image(content, **options)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("size", [64, 128])
def test_adm_crop_agrees_with_the_published_one(name: str, size: int) -> None:
    crop = center_crop_adm(open_image(TEST_IMAGES / f"{name}.png"), size)
    expected = golden_tensors("misc")[f"dmcrop.{name}.{size}"].numpy()
    np.testing.assert_array_equal(np.asarray(crop), expected)


def test_adm_crop_enlarges_a_small_image_and_refuses_one_that_would_fill_the_memory() -> None:
    assert center_crop_adm(Image.new("RGB", (5, 9)), 32).size == (32, 32)
    with pytest.raises(DataError, match="too long and thin"):
        center_crop_adm(Image.new("RGB", (1, 100_000)), 512)


def test_every_8_bit_value_survives_the_way_to_a_tensor_and_back() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    x = image_to_tensor(ramp)
    assert (x.shape, x.dtype, float(x.min()), float(x.max())) == ((3, 16, 16), torch.float32, -1.0, 1.0)
    assert uint8_to_image(tensor_to_uint8(x)).tobytes() == ramp.tobytes()


def test_quantisation_rounds_to_nearest_and_clamps() -> None:
    x = torch.tensor([-3.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 7.0])
    assert tensor_to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255]
    assert tensor_to_uint8(x.bfloat16()).dtype == torch.uint8


def test_exif_orientation_is_applied_unless_told_otherwise() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: upright is 90 degrees clockwise
    content = encoded(image, exif=exif)
    assert open_image(content).size == (2, 4)
    assert pixel(content, 1, 0) == (255, 0, 0)
    assert open_image(content, apply_exif=False).size == (4, 2)


def test_transparent_images_are_composed_on_white() -> None:
    assert pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51)))) == (255, 204, 204)
    assert pixel(encoded(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(encoded(palette)) == (40, 50, 60)
    assert pixel(encoded(palette, transparency=1)) == (255, 255, 255)
    assert pixel(encoded(palette, "GIF", transparency=1)) == (255, 255, 255)


def test_transparency_and_depth_are_dropped_as_the_published_code_does_where_asked() -> None:
    """The pixels of Pillow's own `convert("RGB")`, whatever the file."""
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.info["transparency"] = 1
    for image in (
        Image.new("RGBA", (2, 2), (255, 0, 0, 51)),
        Image.new("LA", (2, 2), (40, 0)),
        palette,
        Image.fromarray(np.full((2, 2), 300, dtype=np.uint16)),
        Image.new("RGB", (2, 2), (1, 2, 3)),
    ):
        file = encoded(image)
        assert pixel(file, alpha="drop") == Image.open(io.BytesIO(file)).convert("RGB").getpixel((0, 0))
    assert pixel(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51))), alpha="drop") == (255, 0, 0)


def test_deep_greyscale_is_rescaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert list(open_image(encoded(Image.fromarray(values))).getchannel("R").tobytes()) == [0, 1, 128, 255]
    assert list(open_image(encoded(Image.fromarray(values), "TIFF")).getchannel("G").tobytes()) == [0, 1, 128, 255]
    integers = Image.fromarray(np.array([[-1000, 0, 1000]], dtype=np.int32))
    assert list(open_image(encoded(integers, "TIFF")).getchannel("B").tobytes()) == [0, 128, 255]
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert list(open_image(encoded(floats, "TIFF")).getchannel("R").tobytes()) == [0, 128, 255]
    with pytest.raises(DataError, match="NaN"):
        open_image(encoded(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "TIFF"))


def test_greyscale_one_bit_cmyk_and_animations_become_rgb() -> None:
    assert pixel(encoded(Image.new("L", (1, 1), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (1, 1), 1))) == (255, 255, 255)
    cyan = pixel(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert cyan[0] < 5
    assert min(cyan[1:]) > 250
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert pixel(content) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_exif_block_does_not_lose_the_image() -> None:
    content = encoded(Image.new("RGB", (4, 2), "red"), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30)
    assert open_image(content).size == (4, 2)


def png_header_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def test_the_pixel_limit_is_checked_before_decoding_and_is_the_callers() -> None:
    bomb = png_header_of_size(200_000, 200_000)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"200000 x 200000 = 40,000,000,000 pixels.*--max-pixels"):
        open_image(bomb, name="bomb.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    small = encoded(Image.new("RGB", (11, 10)))
    with pytest.raises(DataError, match="limit of 100;"):
        open_image(small, max_pixels=100)
    assert open_image(small, max_pixels=110).size == (11, 10)


HOSTILE = {
    "empty": (b"", "is empty"),
    "web page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "text": (b"not an image at all", "not an image in a known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image in a known format"),
    "vector": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in a known format"),
    "truncated jpeg": (encoded(Image.effect_noise((256, 256), 60), "JPEG")[:4000], "is damaged"),
    "truncated png": (encoded(Image.effect_noise((256, 256), 60))[:4000], "is damaged"),
    "png without data": (png_header_of_size(64, 64), "is damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_bad_files_are_named_in_one_line(kind: str, tmp_path: Path) -> None:
    content, words = HOSTILE[kind]
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        open_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_bit_flips_end_in_an_image_or_in_a_data_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = bytearray(encoded(Image.effect_noise((32, 32), 60), kind))
        for _ in range(60):
            flipped = bytearray(whole)
            for position in rng.integers(0, len(whole), 3):
                flipped[position] ^= int(rng.integers(1, 256))
            with contextlib.suppress(DataError):
                assert open_image(bytes(flipped), max_pixels=1 << 20).mode == "RGB"


def test_what_phones_write_is_read_upright_and_on_white() -> None:
    pytest.importorskip("pillow_heif")
    image = Image.new("RGBA", (64, 32), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 32))
    content = encoded(image, "HEIF", quality=100)
    assert np.allclose(pixel(content, 8, 16), (255, 255, 255), atol=8)
    assert np.allclose(pixel(content, 56, 16), (200, 30, 30), atol=8)


NO_HEIF = """
import sys
sys.modules["pillow_heif"] = None
from dcae_core.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, open_image
from dcae_core.data.sources import describe_unread
print({".heic", ".heif"} <= UNREAD_SUFFIXES - IMAGE_SUFFIXES)
print(describe_unread({".heic": 2}))
open_image(b"....ftypheic" + bytes(100), name="a.heic")
"""


def test_without_the_package_a_heic_image_says_what_to_install() -> None:
    run = subprocess.run([sys.executable, "-c", NO_HEIF], capture_output=True, text=True)
    assert run.stdout.splitlines()[0] == "True"
    assert "left out 2 .heic: kinds of images that are not read; pip install pillow-heif" in run.stdout
    assert "a.heic is a HEIC image, which needs one more package: pip install pillow-heif" in run.stderr


def test_missing_files_and_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_image(tmp_path / "absent.png")
    with pytest.raises(DataError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        open_image("/dev/zero")
