"""What large vision networks see in images: class features of DINOv2, embeddings of CLIP."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dcae_core.errors import DataError
from dcae_core.models.clip_vision import ClipVision
from dcae_core.models.dinov2 import DinoV2
from dcae_core.pipelines.evaluation.parts import CLIP_EMBEDDINGS, DINOV2_FEATURES
from dcae_core.weights import fingerprint

_DINOV2_SIDE = 224


class DinoV2Measurement:
    """Features of the class token: images brought to 224 x 224 by PIL's bicubic filter, as 8-bit images.

    Attributes:
        name: what the network is called, with its fingerprint.

    Source: Stein et al. 2023 (arXiv 2306.04675); layer6ai-labs/dgm-eval, whose usual network is ViT-L/14.
    """

    def __init__(self, network: DinoV2, name: str) -> None:
        self.name = f"{name} {fingerprint(network)[:16]}"
        self._network, self._device = network, next(network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows `dinov2_features` (B, hidden_size) of uint8 images (B, 3, H, W)."""
        small = torch.stack([_resize(image) for image in images.cpu()]).to(self._device)
        return {DINOV2_FEATURES: _finite(self._network.class_features(small.float() / 127.5 - 1), "DINOv2")}


class ClipMeasurement:
    """Embeddings of length 1: images brought to the network's size by a bicubic filter without antialias.

    Attributes:
        name: what the network is called, with its fingerprint.

    Source: Jayasumana et al. 2024 (arXiv 2401.09603); google-research/cmmd, embedding.py.
    """

    def __init__(self, network: ClipVision, name: str) -> None:
        self.name = f"{name} {fingerprint(network)[:16]}"
        self._network, self._device = network, next(network.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Rows `clip_embeddings` (B, projection_dim) of uint8 images (B, 3, H, W)."""
        side = self._network.config.image_size
        x = F.interpolate(images.to(self._device).float() / 255, size=(side, side), mode="bicubic", align_corners=False)
        return {CLIP_EMBEDDINGS: F.normalize(_finite(self._network(x), "CLIP"), dim=1)}


def _resize(pixels: Tensor) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    small = image.resize((_DINOV2_SIDE, _DINOV2_SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _finite(features: Tensor, network: str) -> Tensor:
    if not torch.isfinite(features).all():
        raise DataError(f"the {network} network gives features that are not finite numbers (NaN): check its weights")
    return features.cpu()
