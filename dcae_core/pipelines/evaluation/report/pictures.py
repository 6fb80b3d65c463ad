"""Pictures inside the page: as data URLs."""

import base64
import io

from PIL import Image
from torch import Tensor

from dcae_core.data.pictures import uint8_to_picture


def data_url(picture: Image.Image | Tensor) -> str:
    """A picture as text that an <img> shows; JPEG of quality 95 without chroma subsampling."""
    image = picture if isinstance(picture, Image.Image) else uint8_to_picture(picture)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
