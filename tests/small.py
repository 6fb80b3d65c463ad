"""Small autoencoders for tests: every kind of layer, thousands of parameters, random weights that matter."""

import torch

from dcae_core.models.autoencoder import Autoencoder
from dcae_core.models.configs import AutoencoderConfig


def small_config(**overrides) -> AutoencoderConfig:
    """Three stages, f = 4, residual and EViT-GLU blocks."""
    base = AutoencoderConfig(
        latent_channels=8,
        encoder_widths=(16, 32, 32),
        encoder_depths=(1, 1, 1),
        encoder_blocks=("res", "res", "evit_glu"),
        encoder_attention_scales=((), (), ()),
        decoder_widths=(16, 32, 32),
        decoder_depths=(1, 1, 1),
        decoder_blocks=("res", "res", "evit_glu"),
        decoder_attention_scales=((), (), ()),
        decoder_norms=("rms_norm",) * 3,
        decoder_acts=("silu",) * 3,
    )
    return base.replace(**overrides)


SMALL_CONFIGS = {
    "1.0": small_config(
        depths=(0, 1, 1), decoder_norms=("batch_norm", "batch_norm", "rms_norm"), decoder_acts=("relu", "relu", "silu")
    ),
    "sana": small_config(attention_scales=((), (), (5,)), downsample="conv", upsample="interpolate"),
    "lite": small_config(
        decoder_depths=(0, 2, 1),
        decoder_blocks=("res",) * 3,
        downsample="conv",
        head_act="silu",
        encoder_depths=(2, 1, 1),
    ),
    "1.5": small_config(depths=(0, 1, 2), blocks=("res",) * 3, head_act="silu", latent_shortcuts=False),
}


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Fill parameters and buffers so that no layer is the identity and no statistic is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() == 1:
                tensor.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)


def small_autoencoder(seed: int = 0, **overrides) -> Autoencoder:
    """A small network with random weights, in evaluation mode."""
    network = Autoencoder(small_config(**overrides))
    randomise(network, seed)
    return network.eval()
