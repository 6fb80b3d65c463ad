"""Where a reconstruction is wrong, as a picture: grey levels first, which may be shrunk, then colours."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ERROR_AT_WHITE = 64  # mean absolute difference of the three channels, of 255; larger ones are as bright

# From black over violet and orange to light yellow: brightness grows evenly, so it also reads in grey.
ERROR_COLOURS = ((0, 0, 0), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 200))


def error_levels(a: Tensor, b: Tensor) -> Image.Image:
    """The mean absolute difference over the channels of two uint8 pictures (3, H, W), as a picture of mode "L"."""
    difference = (a.float() - b.float()).abs().mean(dim=0)
    return Image.fromarray(difference.round().to(torch.uint8).numpy(), "L")


def colour_errors(levels: Image.Image) -> Image.Image:
    """What `error_levels` gave, in colours: black for no error, the lightest one from `ERROR_AT_WHITE` on."""
    stops = np.linspace(0, ERROR_AT_WHITE, len(ERROR_COLOURS))
    table = np.stack(
        [np.interp(np.arange(256), stops, channel) for channel in zip(*ERROR_COLOURS, strict=True)], axis=1
    )
    coloured = levels.copy()
    coloured.putpalette(table.round().astype(np.uint8).tobytes())
    return coloured.convert("RGB")
