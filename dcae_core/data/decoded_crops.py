"""Images cut to one size by threads that work ahead, in the order they were asked for.

Pillow lets go of Python's lock while it decodes and resizes, so threads use several cores without copies or forks.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcae_core.data.images import DEFAULT_MAX_PIXELS, AlphaRule, center_crop_adm
from dcae_core.data.read_ahead import read_ahead
from dcae_core.data.sources import ImageReference
from dcae_core.errors import DataError, SourceLostError

_AHEAD_PER_WORKER = 8


@dataclass(frozen=True)
class DecodedCrop:
    """One image as (3, R, R) uint8, or the error that says why it could not be decoded; the seconds that it took."""

    reference: ImageReference
    pixels: Tensor | None
    error: DataError | None
    seconds: float


def decode_crops(
    references: Iterable[ImageReference],
    resolution: int,
    *,
    num_workers: int,
    apply_exif: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    alpha: AlphaRule = "white",
) -> Iterator[DecodedCrop]:
    """Decode images and cut ADM's centre crop, in order; damaged ones come with their error instead of pixels.

    References are read lazily. Holds at most 8 crops per worker (a thread) beyond the one it returns, and the whole
    images that are being decoded. Images of more than `max_pixels` count as damaged. `alpha` says what becomes of
    transparency.
    """

    def decode(reference: ImageReference) -> DecodedCrop:
        start = time.perf_counter()
        pixels, error = None, None
        try:
            image = reference.open(apply_exif=apply_exif, max_pixels=max_pixels, alpha=alpha)
            crop = center_crop_adm(image, resolution)
            pixels = torch.from_numpy(np.array(crop, dtype=np.uint8)).permute(2, 0, 1)
        except SourceLostError:
            raise
        except DataError as found:
            error = found
        return DecodedCrop(reference, pixels, error, time.perf_counter() - start)

    return read_ahead(references, decode, num_ahead=_AHEAD_PER_WORKER * num_workers, num_threads=num_workers)
