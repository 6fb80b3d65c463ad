"""Autoencoders of the KL family (SD's and FLUX's VAE), the baselines of the paper, through diffusers' AutoencoderKL.

They can stand wherever an autoencoder is asked for. diffusers is an extra: it is imported when one of them is loaded.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcae_core.checkpoints import hub
from dcae_core.errors import CheckpointError, DownloadError, UsageError
from dcae_core.weights import read_json
from dcae_core.zoo import find_autoencoder

_CLASS_NAME = "AutoencoderKL"
_CONFIG_NAME, _WEIGHTS_NAME = "config.json", "diffusion_pytorch_model.safetensors"
_FOLDERS = ("", "vae/")  # of an autoencoder alone, and of a pipeline


class KLAutoencoder(nn.Module):
    """A KL autoencoder with the methods of ours. Where it was trained with a shift, latents are already shifted.

    Attributes:
        scaling_factor: what latents are multiplied by before a diffusion model.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
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
        """(B, 3, H, W) in [-1, 1] -> latent (B, C, H/f, W/f), shifted but unscaled.

        Args:
            x: images.
            noise: standard normal, of the latent's shape: draws from the posterior; None gives its mean.
        """
        posterior = self.network.encode(x).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent - self.shift_factor

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w), shifted but unscaled -> (B, 3, h * f, w * f), unclamped."""
        return self.network.decode(z + self.shift_factor).sample

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode, without chance."""
        return self.decode(self.encode(x))


def find_kl_autoencoder(model: str | Path | None, revision: str | None = None) -> Path | None:
    """The directory of a KL autoencoder, downloaded where it is not cached; None if `model` is something else.

    Args:
        model: as for `load_autoencoder`: a directory or a hub id, of an autoencoder or of a pipeline with a `vae/`.
        revision: of a hub repository.

    Raises:
        DownloadError: its weights are not cached and cannot be downloaded.
    """
    name = str(model)
    if model is None or find_autoencoder(name) is not None:
        return None
    if Path(model).is_dir():
        return next((Path(model) / folder for folder in _FOLDERS if _is_kl(Path(model) / folder / _CONFIG_NAME)), None)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(model).exists():
        return None
    for folder in _FOLDERS:
        try:
            directory = hub.fetch(name, [folder + _CONFIG_NAME], revision)
        except (UsageError, DownloadError):
            continue
        if _is_kl(directory / folder / _CONFIG_NAME):
            return hub.fetch(name, [folder + _CONFIG_NAME, folder + _WEIGHTS_NAME], revision) / folder
    return None


def read_kl_autoencoder(directory: Path, dtype: torch.dtype | None = None) -> KLAutoencoder:
    """Load one, in evaluation mode, on the CPU; safetensors only.

    Raises:
        UsageError: diffusers is not installed.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UsageError(
            f"{directory} is an {_CLASS_NAME}; reading one needs: pip install 'dcae[diffusers]'"
        ) from error
    if not (directory / _WEIGHTS_NAME).is_file():
        raise CheckpointError(f"{directory} has a {_CONFIG_NAME} but no {_WEIGHTS_NAME}")
    try:
        # low_cpu_mem_usage would leave tensors that the file lacks uninitialised; without it they are reported.
        network, report = AutoencoderKL.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=dtype or torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many kinds on files that are damaged or of other shapes
        raise CheckpointError(f"{directory} cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            raise CheckpointError(f"{directory / _WEIGHTS_NAME}: {kind.replace('_', ' ')}: {sorted(report[kind])[0]}")
    return KLAutoencoder(network).eval()


def _is_kl(config: Path) -> bool:
    return config.is_file() and read_json(config).get("_class_name") == _CLASS_NAME
