"""Encoding and decoding images of any size: padding, tiles, and how much fits into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

from dcae_core.checkpoints.kl_autoencoder import KLAutoencoder
from dcae_core.data.images import tensor_to_uint8, uint8_to_tensor
from dcae_core.devices import memory_of
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.configs import AutoencoderConfig
from dcae_core.progress import ProgressCallback

DEFAULT_TILE = 1024  # smaller tiles leave visible artefacts in flat regions
_DEFAULT_TILE_POSITIONS = 16  # at least this many latent positions a side, for high compression ratios

# Feature maps that are alive at once at the worst moment of a block, in multiples of the block's width: measured.
_MAPS = {"res": 6, "evit_glu": 32}
_CPU_SHARE = 0.25  # of the machine's memory: others work on it too
_GPU_SHARE = 0.6


def activation_bytes(config: AutoencoderConfig, num_pixels: int, bytes_per_value: int) -> int:
    """About how much memory the feature maps of one image need at most while it is encoded or decoded."""
    stages = [
        *enumerate(zip(config.encoder_widths, config.encoder_blocks, config.encoder_depths, strict=True)),
        *enumerate(zip(config.decoder_widths, config.decoder_blocks, config.decoder_depths, strict=True)),
    ]
    values_per_pixel = max(_MAPS[block] * width / 4**stage for stage, (width, block, depth) in stages if depth)
    return int(values_per_pixel * num_pixels * bytes_per_value)


def choose_tile(network: Autoencoder | KLAutoencoder, height: int, width: int) -> int | None:
    """The tile side with which an image of this size fits into memory; None where it fits whole.

    Depends on the network, the image and how much memory the machine has, not on how much is free at the moment, so
    the same command gives the same image.
    """
    weight = next(network.parameters())
    share = _CPU_SHARE if weight.device.type == "cpu" else _GPU_SHARE
    if isinstance(network, KLAutoencoder):  # residual blocks, widest in memory at full resolution
        needed = _MAPS["res"] * network.widths[0] * height * width * weight.element_size()
    else:
        needed = activation_bytes(network.config, height * width, weight.element_size())
    if needed <= share * memory_of(weight.device):
        return None
    return max(DEFAULT_TILE, _DEFAULT_TILE_POSITIONS * network.spatial_compression_ratio)


MIN_TILE = 4  # latent positions; fewer leave nothing between the margins


@dataclass(frozen=True)
class Tile:
    """One tile along one axis, in latent positions: from `start` to one before `stop`.

    Attributes:
        fade_in: where (as a real coordinate) its weight is 1/2 on the way up; None at the start of the axis.
        fade_out: where its weight is 1/2 on the way down; None at the end of the axis.
        fade: length of each fade.
    """

    start: int
    stop: int
    fade_in: float | None
    fade_out: float | None
    fade: float

    def weights(self, resolution: int) -> Tensor:
        """What its results count for: (resolution * (stop - start),) in [0, 1], `resolution` values per position.

        The weights of all tiles of an axis add up to 1 everywhere.
        """
        centres = self.start + (torch.arange((self.stop - self.start) * resolution) + 0.5) / resolution
        weights = torch.ones_like(centres)
        if self.fade_in is not None:
            weights = weights * _raised_cosine((centres - self.fade_in) / self.fade + 0.5)
        if self.fade_out is not None:
            weights = weights * (1 - _raised_cosine((centres - self.fade_out) / self.fade + 0.5))
        return weights


def _raised_cosine(x: Tensor) -> Tensor:
    """0 for x <= 0, 1 for x >= 1, and half a cosine period between."""
    return 0.5 - 0.5 * torch.cos(torch.pi * x.clamp(0, 1))


def plan_tiles(length: int, tile: int) -> list[Tile]:
    """Cut an axis of `length` latent positions into evenly spaced tiles of `tile` positions.

    Neighbours share at least a quarter of a tile; the middle half of that is the fade. One tile if it holds the axis.
    """
    assert tile >= MIN_TILE
    if length <= tile:
        return [Tile(0, length, None, None, 1.0)]
    overlap = max(tile // 4, 2)
    fade = overlap / 2
    count = ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    middles = [(next_start + start + tile) / 2 for start, next_start in pairwise(starts)]
    return [
        Tile(start, start + tile, before, after, fade)
        for start, before, after in zip(starts, [None, *middles], [*middles, None], strict=True)
    ]


ReadRows = Callable[[int, int], Tensor]
"""`read(top, bottom)` gives these rows of an image: uint8 (3, bottom - top, W), on the CPU."""


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
    """The tile side in latent positions, rounded up; UsageError if it is too small for the network."""
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
    progress: ProgressCallback | None = None,
) -> Tensor:
    """Encode one image of any size, of which only the rows of one tile are held; UsageError if the tile is too small.

    Costs the network's activations for one tile (for the whole image without), `tile` rows of the image as uint8,
    and the latent. Computes where and in which number type the network's weights are.

    Args:
        network: the autoencoder.
        read: gives rows of the image.
        size: height and width of the image.
        tile: side of the tiles in pixels; None encodes the image whole.
        progress: called after each tile.

    Returns:
        float32 (C, ceil(H / f), ceil(W / f)) on the CPU, unscaled.
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


def encode_pixels(
    network: Autoencoder, pixels: Tensor, *, tile: int | None = None, progress: ProgressCallback | None = None
) -> Tensor:
    """`encode_rows` of an image in memory, uint8 (3, H, W)."""
    size = (pixels.shape[1], pixels.shape[2])
    return encode_rows(network, lambda top, bottom: pixels[:, top:bottom], size, tile=tile, progress=progress)


@torch.inference_mode()
def decode_rows(
    network: Autoencoder,
    latent: Tensor,
    size: tuple[int, int],
    *,
    tile: int | None = None,
    progress: ProgressCallback | None = None,
) -> Iterator[Tensor]:
    """Decode the latent (C, h, w), unscaled, of one image of any size from top to bottom; arguments as `encode_rows`.

    Costs the network's activations for one tile, `tile` rows of the image as uint8, and as float32 the rows that two
    rows of tiles share, a quarter of a tile. What the padding added to the `size` (height, width) of the image is cut
    off. CheckpointError where the network gives NaN or infinite values.

    Yields:
        The next rows: uint8 (3, n, width) on the CPU.
    """
    f = network.spatial_compression_ratio
    height, width = size
    rows, columns = _plan(network, (latent.shape[1], latent.shape[2]), tile)
    above = torch.zeros(3, 0, latent.shape[2] * f)  # what rows of tiles so far add to the next
    for i, row in enumerate(rows):
        final_row = (rows[i + 1].start if i + 1 < len(rows) else row.stop) * f - row.start * f
        below = torch.zeros(3, (row.stop - row.start) * f - final_row, above.shape[2])
        final = torch.empty(final_row, above.shape[2], 3, dtype=torch.uint8).permute(2, 0, 1)  # as image files lie
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
    progress: ProgressCallback | None = None,
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
    """What came back: the latent, float32 (C, h, w), unscaled, and uint8 pixels (3, H, W), as large as the image."""

    latent: Tensor
    pixels: Tensor


def reconstruct_pixels(
    network: Autoencoder, pixels: Tensor, *, tile: int | None = None, progress: ProgressCallback | None = None
) -> Reconstruction:
    """Encode and decode one image: `encode_pixels`, then `decode_latent`."""
    latent = encode_pixels(network, pixels, tile=tile, progress=progress)
    size = (pixels.shape[1], pixels.shape[2])
    return Reconstruction(latent, decode_latent(network, latent, size, tile=tile, progress=progress))
