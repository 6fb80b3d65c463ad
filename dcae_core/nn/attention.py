"""ReLU linear attention over the positions of a feature map."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.nn.norms import RMSNorm2d

HEAD_CHANNELS = 32
DENOMINATOR_EPS = 1e-15


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    # The meta device, where networks are counted, has no autocast to switch off.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class ScaleAggregation(nn.Module):
    """One more scale of q, k and v: a depthwise k x k convolution, then a 1x1 convolution within each head.

    Source: "aggreg" of LiteMLA in the published implementation (efficientvit/models/nn/ops.py).
    """

    def __init__(self, qkv_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            qkv_channels, qkv_channels, kernel_size, padding=kernel_size // 2, groups=qkv_channels, bias=False
        )
        self.pointwise = nn.Conv2d(qkv_channels, qkv_channels, 1, groups=qkv_channels // HEAD_CHANNELS, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, 3C, H, W) to the same shape."""
        return self.pointwise(self.depthwise(qkv))


class ReLULinearAttention(nn.Module):
    """Attention with ReLU kernels, linear in the number of positions; heads are 32 channels wide.

    For each position p, out_p = (sum_i v_i k_i^T) q_p / (sum_i k_i . q_p + 1e-15) with q and k after a ReLU. The
    sums run in float32 whatever the dtype of the input, since they grow with the number of positions. The published
    code switches to the quadratic form of the same product on maps of at most 32 positions; here one form serves.
    Source: EfficientViT (arXiv 2205.14756), section 3.1; DC-AE (arXiv 2410.10733), section 4.1.

    Args:
        channels: C of input and output, a multiple of 32.
        scales: kernel sizes of further scales of q, k, v (the Sana autoencoders have one, 5).
    """

    def __init__(self, channels: int, scales: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.scales = nn.ModuleList(ScaleAggregation(3 * channels, kernel_size) for kernel_size in scales)
        self.proj = nn.Conv2d((1 + len(scales)) * channels, channels, 1, bias=False)
        self.norm = RMSNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape; memory and time grow with H * W."""
        qkv = self.qkv(x)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.scales)], dim=1)
        with _without_autocast(x):
            attended = self._attend(qkv.float())
        return self.norm(self.proj(attended.to(qkv.dtype)))

    @staticmethod
    def _attend(qkv: Tensor) -> Tensor:
        height, width = qkv.shape[-2:]
        q, k, v = qkv.flatten(2).unflatten(1, (-1, 3 * HEAD_CHANNELS)).chunk(3, dim=2)
        q, k = F.relu(q), F.relu(k)
        numerator = (v @ k.transpose(-1, -2)) @ q
        denominator = k.sum(dim=-1).unsqueeze(-2) @ q
        return (numerator / (denominator + DENOMINATOR_EPS)).flatten(1, 2).unflatten(2, (height, width))
