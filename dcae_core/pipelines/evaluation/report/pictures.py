"""Pictures inside the page: as data URLs, with maps of where a reconstruction is wrong."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

from dcae_core.data.pictures import uint8_to_picture

ERROR_AT_WHITE = 64  # grey levels; larger errors are as bright

# Black, purple, red, orange, pale yellow: equal steps in error look like equal steps in brightness.
_COLOURS = np.array([(0, 0, 0), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191)], dtype=np.float64)


def error_map(original: Tensor, reconstruction: Tensor) -> Image.Image:
    """The mean absolute difference over the channels of uint8 (3, H, W), from 0 (black) to `ERROR_AT_WHITE`."""
    difference = (original.float() - reconstruction.float()).abs().mean(dim=0).numpy()
    position = np.clip(difference / ERROR_AT_WHITE, 0, 1) * (len(_COLOURS) - 1)
    lower = np.minimum(position.astype(int), len(_COLOURS) - 2)
    weight = (position - lower)[..., None]
    colours = _COLOURS[lower] * (1 - weight) + _COLOURS[lower + 1] * weight
    return Image.fromarray((colours + 0.5).astype(np.uint8), "RGB")


def data_url(picture: Image.Image | Tensor) -> str:
    """A picture as text that an <img> shows; JPEG of quality 95 without chroma subsampling."""
    image = picture if isinstance(picture, Image.Image) else uint8_to_picture(picture)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
