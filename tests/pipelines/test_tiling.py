import pytest
import torch
from torch import Tensor

from dcae_core.data.images import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.pipelines import tiling
from dcae_core.pipelines.tiling import (
    decode_latent,
    decode_rows,
    encode_pixels,
    encode_rows,
    padding_indices,
    plan_tiles,
    reconstruct_pixels,
)
from tests.models.test_autoencoder_golden import load_golden
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def network() -> Autoencoder:
    """f = 4, with linear attention over the whole image."""
    return small_autoencoder()


def smooth_image(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    channels = [100 * torch.sin(2.1 * x + 1.3 * y), 90 * torch.cos(1.7 * x - 2.3 * y), 120 * x * y - 50 * y]
    return (128 + torch.stack(channels)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(("length", "padded"), [(5, 8), (8, 8), (100, 128), (17, 32), (2, 3)])
def test_padding_is_reflection(length: int, padded: int) -> None:
    axis = torch.arange(float(length))
    expected = torch.nn.functional.pad(axis[None, None], (0, padded - length), mode="reflect")[0, 0]
    assert torch.equal(axis[padding_indices(length, padded)], expected)


@pytest.mark.parametrize(("length", "padded"), [(1, 32), (16, 32), (2, 4)])
def test_padding_repeats_the_edge_where_a_side_is_too_short_to_be_reflected(length: int, padded: int) -> None:
    assert padding_indices(length, padded).tolist() == [min(i, length - 1) for i in range(padded)]


@pytest.mark.parametrize(("length", "tile"), [(3, 4), (5, 4), (16, 16), (17, 16), (33, 32), (100, 16), (257, 32)])
@pytest.mark.parametrize("resolution", [1, 4])
def test_tiles_cover_the_axis_and_their_weights_add_up_to_one(length: int, tile: int, resolution: int) -> None:
    tiles = plan_tiles(length, tile)
    total = torch.zeros(length * resolution)
    count = torch.zeros(length * resolution)
    for part in tiles:
        assert part.stop - part.start == min(tile, length)
        weights = part.weights(resolution)
        assert bool((weights >= 0).all())
        total[part.start * resolution : part.stop * resolution] += weights
        count[part.start * resolution : part.stop * resolution] += weights > 0
        if part.start > 0 and resolution > 1:
            assert weights[0] == 0  # what a tile computes at its edge, beside nothing, is not used
    torch.testing.assert_close(total, torch.ones_like(total))
    assert count.max() <= 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (33, 47), (40, 24)])
@pytest.mark.parametrize("tile", [None, 32])
def test_images_of_any_size_come_back_in_their_size(
    network: Autoencoder, height: int, width: int, tile: int | None
) -> None:
    result = reconstruct_pixels(network, smooth_image(height, width), tile=tile)
    assert result.pixels.shape == (3, height, width)
    assert result.latent.shape == (8, -(-height // 4), -(-width // 4))


def test_an_image_that_needs_neither_padding_nor_tiles_is_what_the_network_gives(network: Autoencoder) -> None:
    pixels = smooth_image(40, 24)
    with torch.no_grad():
        latent = network.encode(uint8_to_tensor(pixels)[None])
        expected = tensor_to_uint8(network.decode(latent))[0]
    for tile in (None, 40, 64):
        result = reconstruct_pixels(network, pixels, tile=tile)
        assert torch.equal(result.latent, latent[0])
        assert torch.equal(result.pixels, expected)


def assert_seamless(network: Autoencoder, side: int, tile: int) -> None:
    """The difference to the whole image is nowhere larger than in the interior of the tiles."""
    f = network.spatial_compression_ratio
    pixels, size = smooth_image(side, side), (side, side)
    whole = decode_latent(network, encode_pixels(network, pixels), size).int()
    tiled = decode_latent(network, encode_pixels(network, pixels, tile=tile), size, tile=tile).int()
    difference = (whole - tiled).abs().amax(dim=0)

    near_border = torch.zeros(side, dtype=torch.bool)
    for part in plan_tiles(side // f, tile // f):
        for border in (part.start, part.stop, part.fade_in, part.fade_out):
            if border not in (None, 0, side // f):
                near_border[int((border - 1) * f) : int((border + 1) * f)] = True
    at_borders = near_border[:, None] | near_border
    assert 0.2 < at_borders.float().mean() < 0.9
    assert difference[at_borders].max() <= difference[~at_borders].max()


def test_tiles_are_seamless(network: Autoencoder) -> None:
    assert_seamless(network, 384, 128)


def test_no_more_rows_than_a_tile_are_held(network: Autoencoder) -> None:
    pixels, size = smooth_image(300, 90), (300, 90)
    read = []

    def rows(top: int, bottom: int) -> torch.Tensor:
        read.append((top, bottom))
        return pixels[:, top:bottom]

    latent = encode_rows(network, rows, size, tile=64)
    assert torch.equal(latent, encode_pixels(network, pixels, tile=64))
    assert max(bottom - top for top, bottom in read) <= 64
    assert (read[0][0], read[-1][1]) == (0, 300)

    bands = list(decode_rows(network, latent, size, tile=64))
    assert max(band.shape[1] for band in bands) <= 64
    assert torch.equal(torch.cat(bands, dim=1), decode_latent(network, latent, size, tile=64))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "tile"), [(1024, 512), (2048, 1024)])
def test_tiles_of_a_published_network_are_seamless(side: int, tile: int) -> None:
    """Two minutes for the smaller one on two cores; half an hour and 8 GB of memory for the larger."""
    assert_seamless(load_golden("dc-ae-f32c32-in-1.0").requires_grad_(False), side, tile)


def test_without_attention_tiles_change_only_what_lies_beside_their_borders() -> None:
    local = small_autoencoder(blocks=("res",) * 3)
    pixels = smooth_image(256, 64)
    whole, tiled = reconstruct_pixels(local, pixels), reconstruct_pixels(local, pixels, tile=128)
    changed = (whole.latent - tiled.latent).abs().amax(dim=(0, 2)) > 1e-4
    assert not changed[:16].any()
    torch.testing.assert_close(tiled.latent, whole.latent, rtol=0, atol=0.02 * float(whole.latent.abs().max()))


def test_progress_counts_the_tiles(network: Autoencoder) -> None:
    calls: list[tuple[int, int]] = []
    encode_pixels(network, smooth_image(128, 64), tile=64, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_tile_that_is_too_small_is_refused(network: Autoencoder) -> None:
    with pytest.raises(UsageError, match="--tile 15 is too small: this network needs at least 16"):
        encode_pixels(network, smooth_image(64, 64), tile=15)


def test_a_network_that_gives_nan_is_refused(network: Autoencoder) -> None:
    with pytest.raises(CheckpointError, match="NaN"):
        decode_latent(network, torch.full((8, 4, 4), torch.inf), (16, 16))


def test_large_images_are_tiled_where_memory_asks_for_it(network: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "memory_of", lambda device: 16 << 30)
    assert tiling.choose_tile(network, 512, 512) is None
    assert tiling.choose_tile(network, 8192, 8192) == 1024
    assert tiling.choose_tile(network, 3000, 3000) is None
    monkeypatch.setattr(tiling, "memory_of", lambda device: 1 << 30)
    assert tiling.choose_tile(network, 3000, 3000) == 1024
