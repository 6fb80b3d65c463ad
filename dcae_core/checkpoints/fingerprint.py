"""One number for the weights of a network, whatever file, layout or dtype they came from."""

import hashlib

import torch
from torch import nn


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all weights, in the order of their names, in hexadecimal.

    Take it from the plain network, before it is prepared for inference or cast. Costs one pass over the weights.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
