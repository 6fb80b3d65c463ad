"""Random crops for training."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

_ATTEMPTS = 10


@dataclass(frozen=True)
class CropSettings:
    """How training crops are cut.

    Attributes:
        resolution: side of the square result, in pixels.
        scale: smallest and largest share of the picture's area.
        aspect_ratio: smallest and largest width over height before the crop is made square.
        flip: mirror every other crop.
    """

    resolution: int
    scale: tuple[float, float] = (0.25, 1.0)
    aspect_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True


def choose_box(width: int, height: int, settings: CropSettings, generator: np.random.Generator) -> tuple[int, ...]:
    """A random box (left, upper, right, lower) inside a picture.

    Area uniform in `scale`, aspect ratio log-uniform in `aspect_ratio`; the largest central box of an allowed ratio
    where ten attempts do not fit.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; the fallback as in torchvision RandomResizedCrop.
    """
    low, high = settings.aspect_ratio
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(*settings.scale)
        ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    w, h = max(w, 1), max(h, 1)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_crop(image: Image.Image | np.ndarray, settings: CropSettings, generator: np.random.Generator) -> np.ndarray:
    """A random resized crop, perhaps mirrored.

    Args:
        image: an RGB picture, or its pixels (H, W, 3) uint8, of which only the crop is read.
        settings: how to cut.
        generator: where chance comes from.

    Returns:
        (3, resolution, resolution) uint8.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    left, upper, right, lower = choose_box(width, height, settings, generator)
    if isinstance(image, Image.Image):
        region = image.crop((left, upper, right, lower))
    else:
        region = Image.fromarray(np.ascontiguousarray(image[upper:lower, left:right]), "RGB")
    side = settings.resolution
    pixels = np.asarray(region.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))
    if settings.flip and generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
