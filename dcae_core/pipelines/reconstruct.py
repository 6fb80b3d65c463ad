"""A picture of any size through an autoencoder and back, whole or in tiles, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from dcae_core.data.pictures import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines.tiling import MIN_TILE, Tile, plan_tiles

Progress = Callable[[int, int], None]
"""`progress(done, total)` after each tile."""

ReadRows = Callable[[int, int], Tensor]
"""`read(top, bottom)` gives these rows of a picture: uint8 (3, bottom - top, W), on the CPU."""


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
def encode_rows(
    network: Autoencoder,
    read: ReadRows,
    size: tuple[int, int],
    *,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Encode one picture of any size, of which only the rows of one tile are held.

    Costs the network's activations for one tile (for the whole picture without), `tile` rows of the picture as uint8,
    and the latent.

    Args:
        network: where and in which number type it computes is where and what its weights are.
        read: gives rows of the picture.
        size: height and width of the picture.
        tile: side of the tiles in pixels; None encodes the picture whole.
        progress: called after each tile.

    Returns:
        float32 (C, ceil(H / f), ceil(W / f)) on the CPU, unscaled.

    Raises:
        UsageError: the tile is too small.
    """
    f = network.spatial_compression_ratio
    device, dtype = _number_type(network)
    height, width = padded_size(*size, f)
    row_indices, column_indices = padding_indices(size[0], height), padding_indices(size[1], width)
    rows, columns = _plan(network, (height // f, width // f), tile)
    latent = torch.zeros(network.latent_channels, height // f, width // f)
    for i, row in enumerate(rows):
        wanted_rows = row_indices[row.start * f : row.stop * f]
        top = int(wanted_rows.min())
        band = read(top, int(wanted_rows.max()) + 1)
        for j, column in enumerate(columns):
            part = band[:, :, column_indices[column.start * f : column.stop * f]][:, wanted_rows - top]
            encoded = network.encode(uint8_to_tensor(part)[None].to(device, dtype))[0].float().cpu()
            weights = row.weights(1)[:, None] * column.weights(1)
            latent[:, row.start : row.stop, column.start : column.stop] += encoded * weights
            if progress:
                progress(i * len(columns) + j + 1, len(rows) * len(columns))
    return latent


def encode_picture(
    network: Autoencoder, pixels: Tensor, *, tile: int | None = None, progress: Progress | None = None
) -> Tensor:
    """`encode_rows` of a picture in memory, uint8 (3, H, W)."""
    size = (pixels.shape[1], pixels.shape[2])
    return encode_rows(network, lambda top, bottom: pixels[:, top:bottom], size, tile=tile, progress=progress)


@torch.inference_mode()
def decode_rows(
    network: Autoencoder,
    latent: Tensor,
    size: tuple[int, int],
    *,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Decode the latent of one picture of any size from top to bottom.

    Costs the network's activations for one tile, `tile` rows of the picture as uint8, and as float32 the rows that two
    rows of tiles share, a quarter of a tile.

    Args:
        network: as for encoding.
        latent: (C, h, w), unscaled.
        size: height and width of the picture; what the padding added is cut off.
        tile: side of the tiles in pixels; None decodes the latent whole.
        progress: called after each tile.

    Yields:
        The next rows: uint8 (3, n, width) on the CPU.

    Raises:
        UsageError: the tile is too small.
        CheckpointError: the network gives NaN or infinite values.
    """
    f = network.spatial_compression_ratio
    height, width = size
    rows, columns = _plan(network, (latent.shape[1], latent.shape[2]), tile)
    above = torch.zeros(3, 0, latent.shape[2] * f)  # what rows of tiles so far add to the next
    for i, row in enumerate(rows):
        final_row = (rows[i + 1].start if i + 1 < len(rows) else row.stop) * f - row.start * f
        below = torch.zeros(3, (row.stop - row.start) * f - final_row, above.shape[2])
        final = torch.empty(final_row, above.shape[2], 3, dtype=torch.uint8).permute(2, 0, 1)  # as picture files lie
        left = torch.zeros(3, (row.stop - row.start) * f, 0)  # what tiles of this row so far add to the next
        for j, column in enumerate(columns):
            values = _decode_tile(network, latent, row, column)
            values[:, :, : left.shape[2]] += left
            start, stop = column.start * f, (columns[j + 1].start if j + 1 < len(columns) else column.stop) * f
            left = values[:, :, stop - start :].clone()
            values = values[:, :, : stop - start]
            values[:, : above.shape[1]] += above[:, :, start:stop]
            final[:, :, start:stop] = tensor_to_uint8(values[:, :final_row])
            below[:, :, start:stop] = values[:, final_row:]
            if progress:
                progress(i * len(columns) + j + 1, len(rows) * len(columns))
        yield final[:, : height - row.start * f, :width]
        above = below


def _decode_tile(network: Autoencoder, latent: Tensor, row: Tile, column: Tile) -> Tensor:
    """(3, H, W) of one tile, times its weights."""
    device, dtype = _number_type(network)
    part = latent[:, row.start : row.stop, column.start : column.stop]
    decoded = network.decode(part[None].to(device, dtype))[0].float().cpu()
    _check_finite(decoded)
    f = network.spatial_compression_ratio
    return decoded.mul_(row.weights(f)[:, None] * column.weights(f))


def decode_latent(
    network: Autoencoder,
    latent: Tensor,
    size: tuple[int, int],
    *,
    tile: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """`decode_rows` into memory: uint8 (3, height, width) on the CPU, in memory of the form (height, width, 3)."""
    pixels = torch.empty(*size, 3, dtype=torch.uint8).permute(2, 0, 1)
    top = 0
    for rows in decode_rows(network, latent, size, tile=tile, progress=progress):
        pixels[:, top : top + rows.shape[1]] = rows
        top += rows.shape[1]
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
