"""A picture of any size through an autoencoder and back, whole or in tiles, in bounded memory."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from torch import Tensor

from dcae_core.data.pictures import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.tiling import MIN_TILE, Tile, plan_tiles

Progress = Callable[[int, int], None]
"""`progress(done, total)` after each tile."""


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The next height and width that are multiples of `multiple`."""
    return ceil(height / multiple) * multiple, ceil(width / multiple) * multiple


def padding_indices(length: int, padded: int) -> Tensor:
    """Which position of an axis each position of the padded axis repeats: (padded,) int64.

    Padding goes at the end, by reflection (without repeating the edge), or by repeating the edge where the axis is too
    short to be reflected.
    """
    positions = torch.arange(padded)
    if padded <= 2 * length - 1:
        return torch.minimum(positions, 2 * (length - 1) - positions)
    return positions.clamp(max=length - 1)


def _number_type(network: Autoencoder) -> tuple[torch.device, torch.dtype]:
    weight = next(network.parameters())
    return weight.device, weight.dtype


def check_tile(tile: int, ratio: int) -> int:
    """The tile side in latent positions, rounded up.

    Raises:
        UsageError: it is too small for the network.
    """
    if tile < MIN_TILE * ratio:
        raise UsageError(f"--tile {tile} is too small: this network needs at least {MIN_TILE * ratio} pixels")
    return ceil(tile / ratio)


def _plan(network: Autoencoder, latent_size: tuple[int, int], tile: int | None) -> tuple[list[Tile], list[Tile]]:
    height, width = latent_size
    side = max(latent_size) if tile is None else check_tile(tile, network.spatial_compression_ratio)
    side = max(side, MIN_TILE)
    return plan_tiles(height, side), plan_tiles(width, side)


@torch.inference_mode()
def encode_picture(
    network: Autoencoder, pixels: Tensor, *, tile: int | None = None, progress: Progress | None = None
) -> Tensor:
    """Encode one picture of any size.

    Costs the network's activations for one tile (for the whole picture without), and the latent.

    Args:
        network: where and in which number type it computes is where and what its weights are.
        pixels: uint8 (3, H, W), on the CPU.
        tile: side of the tiles in pixels; None encodes the picture whole.
        progress: called after each tile.

    Returns:
        float32 (C, ceil(H / f), ceil(W / f)) on the CPU, unscaled.

    Raises:
        UsageError: the tile is too small.
    """
    f = network.spatial_compression_ratio
    device, dtype = _number_type(network)
    height, width = padded_size(pixels.shape[1], pixels.shape[2], f)
    row_indices = padding_indices(pixels.shape[1], height)
    column_indices = padding_indices(pixels.shape[2], width)
    rows, columns = _plan(network, (height // f, width // f), tile)
    latent = torch.zeros(network.latent_channels, height // f, width // f)
    for done, (row, column) in enumerate(product(rows, columns), start=1):
        part = pixels[:, row_indices[row.start * f : row.stop * f]]
        part = part[:, :, column_indices[column.start * f : column.stop * f]]
        encoded = network.encode(uint8_to_tensor(part)[None].to(device, dtype))[0].float().cpu()
        weights = row.weights(1)[:, None] * column.weights(1)
        latent[:, row.start : row.stop, column.start : column.stop] += encoded * weights
        if progress:
            progress(done, len(rows) * len(columns))
    return latent


@torch.inference_mode()
def decode_latent(
    network: Autoencoder,
    latent: Tensor,
    size: tuple[int, int],
    *,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Decode the latent of one picture of any size.

    Costs the network's activations for one tile, one row of tiles as float32, and the picture as uint8.

    Args:
        network: as for encoding.
        latent: (C, h, w), unscaled.
        size: height and width of the picture; what the padding added is cut off.
        tile: side of the tiles in pixels; None decodes the latent whole.
        progress: called after each tile.

    Returns:
        uint8 (3, height, width) on the CPU.

    Raises:
        UsageError: the tile is too small.
        CheckpointError: the network gives NaN or infinite values.
    """
    f = network.spatial_compression_ratio
    device, dtype = _number_type(network)
    height, width = size
    rows, columns = _plan(network, (latent.shape[1], latent.shape[2]), tile)
    pixels = torch.empty(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)  # as picture files want it: no copy
    band = torch.zeros(3, 0, latent.shape[2] * f)  # the rows of pixels that are not final yet
    for i, row in enumerate(rows):
        grown = torch.zeros(3, (row.stop - row.start) * f, band.shape[2])
        grown[:, : band.shape[1]] = band
        for j, column in enumerate(columns):
            part = latent[:, row.start : row.stop, column.start : column.stop]
            decoded = network.decode(part[None].to(device, dtype))[0].float().cpu()
            decoded *= row.weights(f)[:, None] * column.weights(f)
            grown[:, :, column.start * f : column.stop * f] += decoded
            if progress:
                progress(i * len(columns) + j + 1, len(rows) * len(columns))
        _check_finite(grown)
        final = (rows[i + 1].start if i + 1 < len(rows) else row.stop) * f
        top = row.start * f
        pixels[:, top:final] = tensor_to_uint8(grown[:, : min(final, height) - top, :width])
        band = grown[:, final - top :].clone()  # lets go of the rows that are final
    return pixels


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(
            "the network gives NaN or infinite values: its weights are damaged, or too large for this --dtype "
            "(take fp32 or bf16)"
        )


@dataclass(frozen=True)
class Reconstruction:
    """What came back.

    Attributes:
        latent: float32 (C, h, w), unscaled.
        pixels: uint8 (3, H, W), as large as the picture.
    """

    latent: Tensor
    pixels: Tensor


def reconstruct(
    network: Autoencoder, pixels: Tensor, *, tile: int | None = None, progress: Progress | None = None
) -> Reconstruction:
    """Encode and decode one picture: `encode_picture`, then `decode_latent`."""
    latent = encode_picture(network, pixels, tile=tile, progress=progress)
    size = (pixels.shape[1], pixels.shape[2])
    return Reconstruction(latent, decode_latent(network, latent, size, tile=tile, progress=progress))
