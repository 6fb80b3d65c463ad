"""From Python as from the shell: one image of any kind, encoded, decoded and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcae_core
from dcae_core.errors import DataError, UsageError
from tests.small import small_autoencoder


@pytest.fixture(scope="module")
def autoencoder():
    return small_autoencoder().eval()


def image_of(mode: str = "RGB", width: int = 50, height: int = 37) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image.convert("RGB").convert("P") if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
def test_an_image_in_memory_is_what_its_file_is(autoencoder, tmp_path, mode) -> None:
    image = image_of(mode)
    image.save(tmp_path / "image.png")
    before = image.tobytes()
    in_memory = dcae_core.encode_image(autoencoder, image)
    assert in_memory.shape == (autoencoder.latent_channels, 10, 13)
    assert torch.equal(in_memory, dcae_core.encode_image(autoencoder, str(tmp_path / "image.png")))
    assert image.tobytes() == before


def test_an_image_is_turned_upright_and_keeps_its_size(autoencoder, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image_of().save(tmp_path / "image.jpg", exif=exif)
    for given in (tmp_path / "image.jpg", Image.open(tmp_path / "image.jpg")):
        assert dcae_core.reconstruct_image(autoencoder, given).size == (37, 50)


def test_both_halves_make_the_whole_also_in_tiles(autoencoder) -> None:
    image = image_of(width=90, height=70)
    for tile in (None, 32):
        latent = dcae_core.encode_image(autoencoder, image, tile=tile)
        assert dcae_core.decode_image(autoencoder, latent, tile=tile).size == (92, 72)
        decoded = dcae_core.decode_image(autoencoder, latent, image.size, tile=tile)
        assert decoded == dcae_core.reconstruct_image(autoencoder, image, tile=tile)


def test_what_does_not_fit_is_refused(autoencoder, tmp_path) -> None:
    latent = dcae_core.encode_image(autoencoder, image_of())
    with pytest.raises(DataError, match="a latent of this autoencoder is"):
        dcae_core.decode_image(autoencoder, latent[None])
    with pytest.raises(DataError, match="is not that of an image of 50 x 30"):
        dcae_core.decode_image(autoencoder, latent, (50, 30))
    with pytest.raises(UsageError, match="too small"):
        dcae_core.encode_image(autoencoder, image_of(), tile=3)
    (tmp_path / "cut.png").write_bytes(_cut(tmp_path))
    with pytest.raises(DataError, match="damaged"):
        dcae_core.encode_image(autoencoder, Image.open(tmp_path / "cut.png"))


def _cut(directory: Path) -> bytes:
    image_of().save(directory / "whole.png")
    return (directory / "whole.png").read_bytes()[:2000]
