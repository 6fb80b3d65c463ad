"""Reading, converting, writing and downloading weights: the only room that knows file layouts and key names."""

from dcae_core.checkpoints.autoencoders import load_autoencoder
from dcae_core.checkpoints.saving import save_autoencoder

__all__ = ["load_autoencoder", "save_autoencoder"]
