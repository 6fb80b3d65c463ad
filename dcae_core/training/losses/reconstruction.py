"""The weighted sum of losses that a recipe asks for."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dcae_core.metrics.lpips import load_lpips
from dcae_core.metrics.weights import ALEXNET, LPIPS_ALEXNET_HEADS, LPIPS_VGG16_HEADS, VGG16
from dcae_core.recipes.train_ae import LossSettings
from dcae_core.training.losses.efficientnet import EfficientNetLoss
from dcae_core.training.losses.pixel import gradient_loss, l1_loss, mse_loss, ssim_loss

_LPIPS_FILES = {"vgg": (VGG16, LPIPS_VGG16_HEADS), "alex": (ALEXNET, LPIPS_ALEXNET_HEADS)}

LossFunction = Callable[[Tensor, Tensor], Tensor]


class ReconstructionLoss(nn.Module):
    """Sum of weighted terms between a reconstruction and its picture, all in float32.

    Terms of weight 0 are not computed and need no weights.

    Args:
        settings: the weights.
        device: where the pretrained networks go.

    Raises:
        DownloadError: LPIPS is asked for, and its weights are neither cached nor to be had.
        UsageError: EfficientNet features are asked for, and their package is not installed.
    """

    def __init__(self, settings: LossSettings, device: torch.device) -> None:
        super().__init__()
        self._terms: dict[str, tuple[float, LossFunction]] = {}
        functions: dict[str, LossFunction] = {
            "l1": l1_loss,
            "mse": mse_loss,
            "gradient": gradient_loss,
            "ssim": ssim_loss,
        }
        for name, function in functions.items():
            if (weight := getattr(settings, name)) > 0:
                self._terms[name] = (weight, function)
        if settings.efficientnet > 0:
            self._terms["efficientnet"] = (settings.efficientnet, EfficientNetLoss().to(device))
        if settings.lpips > 0:
            self._terms["lpips"] = (settings.lpips, _lpips(settings, device))

    def forward(self, reconstruction: Tensor, picture: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare (B, 3, H, W) in about [-1, 1] with pictures in [-1, 1].

        Returns:
            The weighted sum as a scalar, and each term without its weight, detached.
        """
        reconstruction, picture = reconstruction.float(), picture.float()
        total = reconstruction.new_zeros(())
        terms = {}
        for name, (weight, function) in self._terms.items():
            value = function(reconstruction, picture)
            total = total + weight * value
            terms[name] = value.detach()
        return total, terms


def _lpips(settings: LossSettings, device: torch.device) -> LossFunction:
    backbone, heads = _LPIPS_FILES[settings.lpips_network]
    files: dict[str, Path] = {}
    if settings.lpips_weights is not None:
        directory = Path(settings.lpips_weights)
        files = {"backbone_weights": directory / backbone.file_name, "head_weights": directory / heads.file_name}
    network = load_lpips(settings.lpips_network, device=device, **files)
    return lambda reconstruction, picture: network(reconstruction, picture).mean()
