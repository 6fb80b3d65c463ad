"""Getting a loaded autoencoder ready for inference, without changing what it computes."""

from dcae_core.models.autoencoder import Autoencoder


def prepare_for_inference(network: Autoencoder) -> Autoencoder:
    """Freeze the network and put it into evaluation mode; returns the same object."""
    return network.eval().requires_grad_(False)
