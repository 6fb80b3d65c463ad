"""Autoencoders of the KL family (SD's and FLUX's VAE), the baselines of the paper, through diffusers' AutoencoderKL.

They can stand wherever an autoencoder is asked for. diffusers is an extra: it is imported when one of them is loaded.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcae_core.errors import CheckpointError, UsageError
from dcae_core.models.normalisation import ChannelNormalisation
from dcae_core.weights import WEIGHT_SUFFIXES, read_weights

KL_CLASS_NAME = "AutoencoderKL"
_STATISTICS_STEM = "latents_stats"


class KLAutoencoder(nn.Module):
    """A KL autoencoder with the methods of ours. Where it was trained with a shift, latents are already shifted.

    Some have a mean and a deviation for each channel (diffusers' `latents_mean` and `latents_std`; LightningDiT's
    VA-VAE, whose `latents_stats` file lies beside the weights): their latents are (z - mean) / deviation.

    `scaling_factor` is what latents are multiplied by before a diffusion model.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, network: Any, statistics: ChannelNormalisation | None = None) -> None:
        super().__init__()
        self.network = network
        self.is_normalised = statistics is not None
        if statistics is not None:
            # Buffers, so that they move with the network and belong to what its latents are known by.
            self.register_buffer("latent_mean", torch.tensor(statistics.mean)[:, None, None])
            self.register_buffer("latent_std", torch.tensor(statistics.std)[:, None, None])
        self.scaling_factor: float | None = network.config.scaling_factor
        self.shift_factor = float(getattr(network.config, "shift_factor", None) or 0.0)

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent position, along one side."""
        return 2 ** (len(self.widths) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, from full resolution down."""
        return tuple(self.network.config.block_out_channels)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.network.config.latent_channels

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latent (B, C, H/f, W/f), shifted but unscaled.

        `noise`, standard normal and of the latent's shape, draws from the posterior; None gives its mean.
        """
        posterior = self.network.encode(x).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        latent = latent - self.shift_factor
        return (latent - self.latent_mean) / self.latent_std if self.is_normalised else latent

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w), shifted but unscaled -> (B, 3, h * f, w * f), unclamped."""
        if self.is_normalised:
            z = z * self.latent_std + self.latent_mean
        return self.network.decode(z + self.shift_factor).sample

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode, without noise."""
        return self.decode(self.encode(x))


def read_kl_autoencoder(weights: Path, dtype: torch.dtype | None = None) -> KLAutoencoder:
    """The network of a safetensors file with diffusers' names, beside its config.json; in evaluation mode, on the CPU.

    UsageError where diffusers is not installed, CheckpointError where the weights do not fit.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UsageError(
            f"{weights.parent} is an {KL_CLASS_NAME}; reading one needs: pip install 'dcae[diffusers]'"
        ) from error
    if not weights.is_file():
        raise CheckpointError(f"{weights.parent} has a config.json but no {weights.name}")
    try:
        # low_cpu_mem_usage would leave tensors that the file lacks uninitialised; without it they are reported.
        network, report = AutoencoderKL.from_pretrained(
            weights.parent,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=dtype or torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many kinds on files that are damaged or of other shapes
        raise CheckpointError(f"{weights.parent} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            raise CheckpointError(f"{weights}: {kind.replace('_', ' ')}: {sorted(report[kind])[0]}")
    return KLAutoencoder(network, _read_statistics(weights.parent, network.config)).eval()


def _read_statistics(directory: Path, config: Any) -> ChannelNormalisation | None:
    """The mean and deviation of each latent channel, where the configuration or a file beside it has them."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    where = directory / "config.json"
    for suffix in WEIGHT_SUFFIXES:
        if mean is None and (where := directory / f"{_STATISTICS_STEM}{suffix}").is_file():
            tensors = read_weights(where)
            if not {"mean", "std"} <= tensors.keys():
                raise CheckpointError(f"{where} has no mean and std of latent channels")
            mean, std = tensors["mean"].flatten().tolist(), tensors["std"].flatten().tolist()
            break
    if mean is None and std is None:
        return None
    try:
        statistics = ChannelNormalisation.of(mean or (), std or ())
    except (TypeError, ValueError, UsageError) as error:
        raise CheckpointError(f"{where} has no usable latent statistics: {error}") from error
    if len(statistics.mean) != config.latent_channels:
        raise CheckpointError(f"{where}: {len(statistics.mean)} channel means for {config.latent_channels} channels")
    return statistics
