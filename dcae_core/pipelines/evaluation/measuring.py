"""What is measured on a batch of pictures: rows that belong to one picture each, to be added up later."""

from collections.abc import Collection

import torch
from torch import Tensor

from dcae_core.data.pictures import tensor_to_uint8, uint8_to_tensor
from dcae_core.errors import CheckpointError, DataError, UsageError
from dcae_core.metrics.inception_features import InceptionExtractor
from dcae_core.metrics.lpips import LPIPS
from dcae_core.metrics.reconstruction import psnr, ssim
from dcae_core.models.autoencoder import Autoencoder

FEATURES, LOGITS, ORIGINAL_FEATURES = "features", "logits", "original_features"
LATENT_SUM, LATENT_SQUARE_SUM, LATENT_POSITIONS = "latent_sum", "latent_square_sum", "latent_positions"


class FeatureMeasurement:
    """Inception features, and logits where they are asked for, of pictures from anywhere."""

    def __init__(self, extractor: InceptionExtractor, *, with_logits: bool = False) -> None:
        self._extractor = extractor
        self._with_logits = with_logits

    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        """Rows `features` (B, 2048) and `logits` (B, 1008).

        Raises:
            DataError: the network gives values that are not finite.
        """
        output = self._extractor(pictures, with_logits=self._with_logits)
        if not torch.isfinite(output.features).all():
            raise DataError("the Inception network gives features that are not finite numbers (NaN): check its weights")
        return {FEATURES: output.features} | ({LOGITS: output.logits} if output.logits is not None else {})


class ReconstructionMeasurement:
    """Pictures through an autoencoder, compared with what comes out, and its latents.

    Args:
        network: computes where its weights are, in their number type.
        metrics: names of what is measured.
        lpips: for the metric of that name.
        features: for metrics on Inception features.
        with_original_features: also take the features of the pictures themselves, as the reference.

    Source: the published evaluation (efficientvit aecore/evaluator.py): pictures are 8-bit before every metric.
    """

    def __init__(
        self,
        network: Autoencoder,
        metrics: Collection[str],
        *,
        lpips: LPIPS | None = None,
        features: FeatureMeasurement | None = None,
        with_original_features: bool = False,
    ) -> None:
        self._network = network
        self._metrics = metrics
        self._lpips = lpips
        self._features = features
        self._with_original_features = with_original_features
        weight = next(network.parameters())
        self._device, self._dtype = weight.device, weight.dtype

    @torch.inference_mode()
    def reconstruct(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, uint8 (B, 3, H, W), and the latent, float32 (B, C, h, w), on the network's device.

        Raises:
            UsageError: the sides are no multiples of the network's stride.
            CheckpointError: the network gives NaN or infinite values.
        """
        stride = self._network.spatial_compression_ratio
        height, width = pictures.shape[-2:]
        if height % stride or width % stride:
            raise UsageError(
                f"pictures of {width}x{height} do not fit a network of stride {stride}: give --resolution a multiple "
                f"of {stride}, such as {max(stride, min(height, width) // stride * stride)}"
            )
        x = uint8_to_tensor(pictures.to(self._device)).to(self._dtype)
        latent = self._network.encode(x)
        decoded = self._network.decode(latent)
        if not torch.isfinite(decoded).all():
            raise CheckpointError(
                "the network gives NaN or infinite values: its weights are damaged, or too large for this --dtype "
                "(take fp32 or bf16)"
            )
        return tensor_to_uint8(decoded), latent.float()

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        """Rows for each metric, and sums of each latent channel.

        Raises:
            UsageError: the sides are no multiples of the network's stride.
            CheckpointError: the network gives NaN or infinite values.
        """
        decoded, latent = self.reconstruct(pictures)
        original = pictures.to(self._device)
        rows = _latent_rows(latent)
        if "psnr" in self._metrics:
            rows["psnr"] = psnr(original, decoded)
        if "ssim" in self._metrics:
            rows["ssim"] = ssim(original, decoded)
        if self._lpips is not None:
            rows["lpips"] = self._lpips(uint8_to_tensor(original), uint8_to_tensor(decoded))
        if self._features is not None:
            rows |= self._features(decoded)
            if self._with_original_features:
                rows[ORIGINAL_FEATURES] = self._features(original)[FEATURES]
        return {name: tensor.cpu() for name, tensor in rows.items()}


def _latent_rows(latent: Tensor) -> dict[str, Tensor]:
    values = latent.flatten(2).cpu().double()
    positions = torch.full((len(values),), values.shape[2], dtype=torch.int64)
    return {
        LATENT_SUM: values.sum(dim=2),
        LATENT_SQUARE_SUM: values.square().sum(dim=2),
        LATENT_POSITIONS: positions,
    }
