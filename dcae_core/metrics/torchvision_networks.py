"""Networks that torchvision defines and metrics build upon. It is imported here alone, when one is asked for."""

import torch
from torch import nn

from dcae_core.errors import ResourceError


def require_torchvision() -> None:
    """ResourceError where torchvision is missing, or was built for another torch than the one that is installed."""
    try:
        import torchvision.models  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"torchvision does not work beside torch {torch.__version__} ({first_line}); install both from one index, "
            "for instance: python -m pip install --upgrade torch torchvision"
        ) from error


def convolutions_of(name: str) -> nn.Sequential:
    """The layers called `features` of one of torchvision's classifiers, with random weights, on the CPU."""
    require_torchvision()
    from torchvision.models import get_model

    with torch.device("meta"):  # what is left behind, the classifier, has most of the weights and is never made
        layers: nn.Sequential = get_model(name, weights=None).features
    layers = layers.to_empty(device="cpu")
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return layers
