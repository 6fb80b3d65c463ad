"""Reading, converting, writing and downloading weights: the only room that knows file layouts and key names."""

from dcae_core.checkpoints.fingerprint import fingerprint
from dcae_core.checkpoints.loading import load_autoencoder
from dcae_core.checkpoints.reading import read_weights
from dcae_core.checkpoints.saving import save_autoencoder

__all__ = ["fingerprint", "load_autoencoder", "read_weights", "save_autoencoder"]
