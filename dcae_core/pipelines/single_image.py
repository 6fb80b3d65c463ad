"""One image through an autoencoder from Python: what `dcae reconstruct` and `dcae decode` do to a file, in memory."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from dcae_core.data.images import image_to_uint8, open_image, uint8_to_image, upright_rgb
from dcae_core.errors import DataError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.tiling import check_tile, choose_tile, decode_latent, encode_pixels


def encode_image(autoencoder: Autoencoder, image: str | Path | Image.Image, *, tile: int | None = None) -> Tensor:
    """Encode one image of any size, padded to a multiple of the compression ratio f by reflection.

    Costs the image as 8-bit RGB and the activations of one tile.

    Args:
        autoencoder: of `load_autoencoder`.
        image: a file, or an image in memory in any mode; turned upright, transparency composed on white.
        tile: side of the tiles in pixels; None takes tiles only where the whole would not fit into memory.

    Returns:
        The latent, float32 (C, ceil(H / f), ceil(W / f)) on the CPU, unscaled.

    Raises:
        DataError: the file is missing, damaged, too large, or no image.
        UsageError: the tile is too small.
    """
    rgb = upright_rgb(image) if isinstance(image, Image.Image) else open_image(image)
    return encode_pixels(autoencoder, image_to_uint8(rgb), tile=_tile(autoencoder, rgb.height, rgb.width, tile))


def decode_image(
    autoencoder: Autoencoder, latent: Tensor, size: tuple[int, int] | None = None, *, tile: int | None = None
) -> Image.Image:
    """Decode one latent into an image.

    Args:
        autoencoder: the one that made the latent.
        latent: (C, h, w), unscaled, as `encode_image` gives it.
        size: (width, height) of the image, as PIL has it, to cut off what the padding added; None keeps it.
        tile: as for `encode_image`.

    Raises:
        DataError: the latent is of another autoencoder, or the size does not belong to it.
        CheckpointError: the network gives NaN or infinite values.
        UsageError: the tile is too small.
    """
    channels, ratio = autoencoder.latent_channels, autoencoder.spatial_compression_ratio
    if latent.ndim != 3 or latent.shape[0] != channels:
        raise DataError(f"a latent of this autoencoder is ({channels}, h, w), not {tuple(latent.shape)}")
    padded = (latent.shape[1] * ratio, latent.shape[2] * ratio)
    height, width = padded if size is None else (size[1], size[0])
    if not (0 <= padded[0] - height < ratio and 0 <= padded[1] - width < ratio):
        raise DataError(f"a latent of {tuple(latent.shape)} is not that of an image of {width} x {height}")
    tile = _tile(autoencoder, height, width, tile)
    return uint8_to_image(decode_latent(autoencoder, latent, (height, width), tile=tile))


def reconstruct_image(
    autoencoder: Autoencoder, image: str | Path | Image.Image, *, tile: int | None = None
) -> Image.Image:
    """Encode one image and decode it again, to the same size; arguments and errors as for both halves.

    The same bytes as `dcae reconstruct` writes.
    """
    rgb = upright_rgb(image) if isinstance(image, Image.Image) else open_image(image)
    return decode_image(autoencoder, encode_image(autoencoder, rgb, tile=tile), rgb.size, tile=tile)


def _tile(autoencoder: Autoencoder, height: int, width: int, tile: int | None) -> int | None:
    if tile is None:
        return choose_tile(autoencoder, height, width)
    check_tile(tile, autoencoder.spatial_compression_ratio)
    return tile
