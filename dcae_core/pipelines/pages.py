"""Pages to look at results with: each one file that needs no other and no network, readable on a phone and in the dark.

How they look is in `templates/` beside this file: a Jinja template for each page, and one style for all.
"""

import base64
import io
from importlib.resources import files
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from dcae_core.data.images import uint8_to_image


def render(template: str, **values: Any) -> str:
    """A page, or a card; whatever comes from files is escaped by itself in pages."""
    templates = files(__package__) / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: templates.joinpath(name).read_text(encoding="utf-8")),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def data_url(image: Image.Image | Tensor) -> str:
    """An image as text that an <img> shows; JPEG of quality 95 without chroma subsampling."""
    shown = image if isinstance(image, Image.Image) else uint8_to_image(image)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
