"""Whether a picture fits through a network whole, or has to go in tiles."""

from dcae_core.checkpoints.kl_autoencoder import KLAutoencoder
from dcae_core.devices import memory_of
from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.autoencoder_config import AutoencoderConfig

DEFAULT_TILE = 1024  # smaller tiles leave visible artefacts in flat regions
_DEFAULT_TILE_POSITIONS = 16  # at least this many latent positions a side, for high compression ratios

# Feature maps that are alive at once at the worst moment of a block, in multiples of the block's width: measured.
_MAPS = {"res": 6, "evit_glu": 32}
_CPU_SHARE = 0.25  # of the machine's memory: others work on it too
_GPU_SHARE = 0.6


def activation_bytes(config: AutoencoderConfig, num_pixels: int, bytes_per_value: int) -> int:
    """About how much memory the feature maps of one picture need at most while it is encoded or decoded."""
    stages = [
        *enumerate(zip(config.encoder_widths, config.encoder_blocks, config.encoder_depths, strict=True)),
        *enumerate(zip(config.decoder_widths, config.decoder_blocks, config.decoder_depths, strict=True)),
    ]
    values_per_pixel = max(_MAPS[block] * width / 4**stage for stage, (width, block, depth) in stages if depth)
    return int(values_per_pixel * num_pixels * bytes_per_value)


def choose_tile(network: Autoencoder | KLAutoencoder, height: int, width: int) -> int | None:
    """The tile side with which a picture of this size fits into memory; None where it fits whole.

    Depends on the network, the picture and how much memory the machine has, not on how much is free at the moment, so
    the same command gives the same picture.
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
