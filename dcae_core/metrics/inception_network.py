"""The network of FID: torchvision's Inception v3 with what the published graph of 2015-12-05 does differently.

Importing this module needs torchvision; `dcae_core.metrics.torchvision_networks.require_torchvision` says so in words.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

NUM_LOGITS = 1008
_SPATIAL_BLOCK, _NUM_SPATIAL_CHANNELS = "Mixed_6d", 7


def _mean_of_image(x: Tensor) -> Tensor:
    """3x3 means that leave out what lies beyond the border; torchvision's count it as zeros."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean_of_image(x)),
        ]


class _BlockC(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_mean_of_image(x)),
        ]


class _BlockE(InceptionE):
    def _pool(self, x: Tensor) -> Tensor:
        return _mean_of_image(x)

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        ]


class _LastBlock(_BlockE):
    """The published graph pools its last block by maximum: part of the definition, whatever its reason was."""

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


class InceptionV3(Inception3):
    """The network alone, with random weights, frozen, in evaluation mode; about 5.7 GMACs per image."""

    def __init__(self) -> None:
        blocks = [BasicConv2d, _BlockA, InceptionB, _BlockC, InceptionD, _BlockE, InceptionAux]
        super().__init__(num_classes=NUM_LOGITS, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c = _LastBlock(2048)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "InceptionV3":
        """Stay in evaluation mode: a metric does not change with the network it measures."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, 299, 299) in [-1, 1] -> features of the last pooling layer (B, 2048), none negative."""
        return self.forward_with_spatial(x)[0]

    def forward_with_spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Also the spatial features (B, 2023) of sFID: seven channels at 17 x 17 positions, channels running fastest.

        Source: Nash et al. 2021 (arXiv 2103.03841); guided-diffusion evaluations/evaluator.py, `mixed_6/conv`.
        """
        for name, layer in self.named_children():
            if name == "fc":
                break
            if name == _SPATIAL_BLOCK:
                spatial = layer.branch1x1(x)[:, :_NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            x = layer(x)
        return torch.flatten(x, 1), spatial

    def unbiased_logits(self, features: Tensor) -> Tensor:
        """Class logits (B, 1008) without the bias, as the Inception Score takes them, from features (B, 2048)."""
        return features @ self.fc.weight.T
