"""Images in and out: whatever a file holds becomes an upright 8-bit RGB image, that becomes a tensor, and back.

Files come from anywhere, so only decoders of plain raster formats are tried (none that starts another program), sides,
pixels and the memory that decoding takes are counted before any pixel exists, and every way a decoder can fail ends in
one line.
"""

import ctypes
import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from dcae_core.errors import DataError, ResourceError
from dcae_core.limits import MAX_FILE_BYTES, MAX_IMAGE_SIDE, memory_for

DEFAULT_MAX_PIXELS = 178_956_970  # where Pillow itself starts to refuse: 716 MB once decoded

RASTER_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
_HEIF_IS_READ = find_spec("pillow_heif") is not None  # an extra: its wheels hold an encoder under the GPL
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".mpo", ".png", ".apng"}
    | {".pbm", ".pgm", ".ppm", ".pnm", ".qoi", ".tga", ".tif", ".tiff", ".webp"}
    | (HEIF_SUFFIXES if _HEIF_IS_READ else set())
)

# Images all the same, but of kinds that no decoder here reads: left out of a folder they are counted.
UNREAD_SUFFIXES = frozenset(
    {".jxl", ".psd", ".exr", ".hdr", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
    | (HEIF_SUFFIXES - IMAGE_SUFFIXES)
)

_RGB_BYTES = 4  # a pixel, as Pillow keeps it
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "LA": 4, "PA": 4, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # others: 4
# What decoders hold for a pixel beside the image itself: whole frames, coefficients, planes; measured.
_DECODER_BYTES = {"WEBP": 16, "AVIF": 16, "JPEG2000": 24, "JPEG": 6, "MPO": 6, "TIFF": 8, "GIF": 4, "HEIF": 8}
_WEBP_CANVAS_BYTES = 8
_STRIP_PIXELS = 1 << 20

AlphaRule = Literal["white", "drop"]
"""Transparent images are composed on white, and 16-bit ones rescaled; or as the published code does, Pillow's
`convert("RGB")`: it drops what says how transparent a pixel is, and cuts off what 8 bits do not hold."""

_pixel_limit_lock = threading.Lock()


@contextmanager
def _without_pillow_pixel_limit() -> Iterator[None]:
    """Let `max_pixels` decide alone. Pillow's limit is one global for the process, so it is put back at once."""
    with _pixel_limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_header(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    start = file.read(512)
    file.seek(0)
    if not start:
        raise DataError(f"{name} is empty (0 bytes): copy or download it again")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head")):
        raise DataError(f"{name} is a web page, not an image: download the image itself")
    _prepare_decoders()
    width, height = _webp_canvas(start) or (0, 0)
    _check_size(width, height, name, max_pixels)
    needed = memory_for(width * height * _WEBP_CANVAS_BYTES, f"opening {name} ({width} x {height} pixels)")
    try:
        with needed, _without_pillow_pixel_limit():
            return Image.open(file, formats=[known for known in RASTER_FORMATS if known in Image.OPEN])
    except ResourceError:
        raise
    except MemoryError as error:
        raise ResourceError(f"not enough memory to open {name}") from error
    except Exception as error:  # decoders raise every kind of exception on bytes that are not theirs
        if not _HEIF_IS_READ and _is_heif(start):
            raise DataError(f"{name} is a HEIC image, which needs one more package: pip install pillow-heif") from error
        raise DataError(f"{name} is not an image in a known format (JPEG, PNG, WebP, TIFF, GIF, BMP, ...)") from error


def _is_heif(start: bytes) -> bool:
    """Whether a file begins as phones' images do. Source: ISO/IEC 23008-12, brands of HEVC images."""
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")


@cache
def _prepare_decoders() -> None:
    """Load Pillow's decoders, and HEIF's; keep libtiff's complaints off standard error: what is wrong is told by us."""
    Image.init()
    if _HEIF_IS_READ:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    with suppress(OSError, AttributeError):  # a Pillow without libtiff, or with one that cannot be reached
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _webp_canvas(start: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP, whose decoder takes memory for the whole canvas as soon as the file is opened.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return None
    match start[12:16]:
        case b"VP8X":
            return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(start[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            sides = int.from_bytes(start[26:28], "little"), int.from_bytes(start[28:30], "little")
            return sides[0] & 0x3FFF, sides[1] & 0x3FFF
    return None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of about a million pixels, each with its top row: what a change of mode costs at a time."""
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_8_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How the strips of an image in a deep grey mode map onto 0..255: nothing is cut off at 255, as Pillow does.

    16-bit values are divided by 257. Other integers and floats have no fixed range: 0..1 and 0..255 are read as such,
    anything else is stretched from its own minimum to its own maximum.
    """
    low, high = math.inf, -math.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinite values")
        low, high = min(low, float(values.min())), max(high, float(values.max()))

    def scale(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.float64)
        if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
            scaled = values / 257.0
        elif image.mode == "F" and low >= 0 and high <= 1:
            scaled = values * 255.0
        elif low >= 0 and high <= 255:
            scaled = values
        else:
            scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
        return Image.fromarray(np.floor(scaled + 0.5).astype(np.uint8), "L")

    return scale


def _on_white(strip: Image.Image) -> Image.Image:
    strip = strip.convert("RGBA")
    white = Image.new("RGB", strip.size, "white")
    white.paste(strip, mask=strip.getchannel("A"))
    return white


def _to_rgb(image: Image.Image, alpha: AlphaRule) -> Image.Image:
    if alpha == "drop":
        return image.convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        convert = _to_8_bits(image)
    elif image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        convert = _on_white
    elif image.mode == "RGB":
        return image
    else:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip).convert("RGB"), (0, top))
    return rgb


def _turn_upright(image: Image.Image) -> None:
    # A damaged EXIF block says nothing about orientation; the pixels are still good.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in memory, of any mode, as `open_image` would give that of its file; the argument stays as it is.

    Raises:
        DataError: its pixels cannot be read (Pillow reads a file's when they are first asked for), or are not finite.
    """
    try:
        image = image.copy()
        _turn_upright(image)
        return _to_rgb(image, "white")
    except Exception as error:  # truncated or hostile data: each decoder has its own exceptions
        raise DataError(f"the image is damaged: {str(error) or type(error).__name__}") from error


def open_image(
    source: str | Path | bytes,
    *,
    name: str | None = None,
    apply_exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    alpha: AlphaRule = "white",
) -> Image.Image:
    """Decode an image file into RGB.

    Transparent images are composed on white; palettes, greyscale and CMYK become RGB; 16-bit and floating-point
    greyscale is rescaled to 8 bits, not clipped; of an animation the first frame is taken. Colour profiles are not
    applied, as in the published code. Pillow keeps 4 bytes a pixel (twice that while it changes the mode of others).

    Args:
        source: a path, or the bytes of a file.
        name: what messages call the image; by default the path.
        apply_exif: turn the image upright as its EXIF orientation says. The published code does not.
        max_pixels: refuse an image of more pixels than this before decoding it.
        alpha: "drop" converts as the published code does, without regard to transparency and depth.

    Raises:
        DataError: the file is missing, empty, damaged, too large, or not an image.
        ResourceError: there is not enough memory to decode it; told before it is taken.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), name or "the image", apply_exif, max_pixels, alpha)
    path = Path(source)
    name = name or str(path)
    if path.is_dir():
        raise DataError(f"{name} is a directory, not an image")
    if not path.is_file():  # also false for devices and pipes, which could be read without end
        raise DataError(f"{name}: no such file" if not path.exists() else f"{name} is not a regular file")
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_FILE_BYTES:
                raise DataError(f"{name} has {size:,} bytes; images are read up to {MAX_FILE_BYTES:,}")
            return _decode(file, name, apply_exif, max_pixels, alpha)
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _decode(file: IO[bytes], name: str, apply_exif: bool, max_pixels: int, alpha: AlphaRule) -> Image.Image:
    image = _read_header(file, name, max_pixels)
    width, height = image.size
    _check_size(width, height, name, max_pixels)
    needed = _count_bytes(image)
    try:
        with memory_for(needed, f"decoding {name} ({width} x {height} pixels)"):
            image.load()
            if apply_exif:
                _turn_upright(image)
            return _to_rgb(image, alpha)
    except ResourceError:
        raise
    except MemoryError as error:
        raise ResourceError(f"not enough memory to decode {name} ({width} x {height} pixels)") from error
    except Exception as error:  # truncated or hostile data: each decoder has its own exceptions
        raise DataError(f"{name} is damaged: {str(error) or type(error).__name__}") from error


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if (longest := max(width, height)) > MAX_IMAGE_SIDE:
        raise DataError(f"{name} has a side of {longest:,} pixels, more than the limit of {MAX_IMAGE_SIDE:,}")
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "raise --max-pixels if you trust it"
        )


def _count_bytes(image: Image.Image) -> int:
    """How much memory decoding takes: of the decoder, the decoded image, and the RGB image made of it."""
    decoder = _DECODER_BYTES.get(image.format or "", 0)
    return image.width * image.height * (decoder + _MODE_BYTES.get(image.mode, _RGB_BYTES) + _RGB_BYTES)


def image_to_uint8(image: Image.Image) -> torch.Tensor:
    """An RGB image as a uint8 tensor (3, H, W), a copy in memory of the form (H, W, 3)."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as a float32 tensor (3, H, W) in [-1, 1]: 0 becomes -1 and 255 becomes 1."""
    return uint8_to_tensor(image_to_uint8(image))


def uint8_to_tensor(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit values of any shape as float32 in [-1, 1], contiguous."""
    return pixels.contiguous().float().div_(127.5).sub_(1.0)


def tensor_to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Quantise values in [-1, 1] of any shape to 8 bits, rounding to the nearest and clamping what lies outside.

    Source: `torch.clamp(127.5 * x + 128.0, 0, 255).to(torch.uint8)`, DC-Gen/efficientvit evaluation code.
    """
    return (x.float() * 127.5 + 128.0).clamp_(0, 255).to(torch.uint8)


def uint8_to_image(pixels: torch.Tensor) -> Image.Image:
    """A uint8 tensor (3, H, W) as an RGB image."""
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), "RGB")


def describe_crop(resolution: int | None) -> str:
    """What is done to the size of images before they are encoded or measured, for whoever compares figures."""
    if resolution is None:
        return "whole, neither cut nor resized"
    return (
        f"the central square of each, its short side brought to {resolution} pixels "
        "(halved by a box filter, then bicubic: ADM's centre crop)"
    )


def describe_enlarged(enlarged: int, total: int, resolution: int) -> str:
    """A warning about images that are smaller than the square that is cut from them."""
    return (
        f"{enlarged} of {total} images are smaller than {resolution} pixels and were enlarged: "
        "the figures are those of blurred images; take a smaller --resolution, or `dcae reconstruct`, which leaves "
        "images whole"
    )


def center_crop_adm(image: Image.Image, size: int) -> Image.Image:
    """Shrink or enlarge the short side to `size` pixels and cut the central square: ImageNet's usual preparation.

    Halving with a box filter as long as the image is at least twice too large, then one bicubic step. DataError where
    the image is so long and thin that its short side cannot be enlarged to `size` in memory.

    Source: `center_crop_arr`, guided-diffusion (ADM) `image_datasets.py`, used by DiT, UViT and DC-AE.
    """
    if size * size * max(image.size) / min(image.size) > DEFAULT_MAX_PIXELS:
        raise DataError(f"an image of {image.width} x {image.height} is too long and thin to cut {size} x {size} from")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
