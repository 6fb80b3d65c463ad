"""A second, weaker network for autoguidance: it has to be of the same task as the one that it guides."""

import torch
from torch import nn

from dcae_core.checkpoints.denoiser_files import DiffusionFiles
from dcae_core.checkpoints.denoisers import read_network
from dcae_core.errors import CheckpointError
from dcae_core.models.configs import DenoiserConfig
from dcae_core.zoo import find_autoencoder


def read_weaker_network(
    weaker: DiffusionFiles, guided: DiffusionFiles, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the network of a located model alone, to lead that of another one away from it (arXiv 2406.02507).

    Raises:
        CheckpointError: the weights are damaged or do not fit, or the two are of different tasks.
    """
    require_same_task(weaker, guided)
    network, _ = read_network(weaker, dtype)
    return network.to(device).eval()


def require_same_task(weaker: DiffusionFiles, guided: DiffusionFiles) -> None:
    """Refuse a model whose predictions cannot be mixed with those of another one, before its weights are read.

    Raises:
        CheckpointError: they predict something else, of other classes, or on other latents.
    """
    ours, theirs = _task(weaker), _task(guided)
    for what, value in ours.items():
        if value != theirs[what]:
            _refuse(weaker, guided, what, f"{value} instead of {theirs[what]}")
    if not _same_autoencoder(weaker, guided):
        names = (files.autoencoder or "the embedded one" for files in (weaker, guided))
        _refuse(weaker, guided, "autoencoder", " instead of ".join(names))
    if weaker.normalisation != guided.normalisation or (
        weaker.normalisation is None and weaker.scaling_factor != guided.scaling_factor
    ):
        _refuse(weaker, guided, "normalisation", "its latents were scaled in another way")


def _task(files: DiffusionFiles) -> dict[str, object]:
    return {
        "prediction": files.prediction,
        "latent": _latent(files.config),
        "number of classes": files.config.num_classes,
    }


def _latent(config: DenoiserConfig) -> tuple[int, int, int]:
    return (config.in_channels, *config.latent_size)


def _same_autoencoder(weaker: DiffusionFiles, guided: DiffusionFiles) -> bool:
    """By fingerprint, of the whole or of the encoder, where both have one; a released model has a name alone."""
    if None not in (weaker.made_by[0], guided.made_by[0]):
        pairs = zip(weaker.made_by, guided.made_by, strict=True)
        return any(ours is not None and ours == theirs for ours, theirs in pairs)
    return _name(weaker) == _name(guided)


def _name(files: DiffusionFiles) -> str | None:
    entry = find_autoencoder(files.autoencoder) if files.autoencoder is not None else None
    return entry.name if entry is not None else files.autoencoder


def _refuse(weaker: DiffusionFiles, guided: DiffusionFiles, what: str, difference: str) -> None:
    raise CheckpointError(
        f"autoguidance: {weaker.where} has another {what} than {guided.where}: {difference}; "
        "give a smaller or less trained model of the same task"
    )
