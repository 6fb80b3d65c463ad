"""3x3 convolution with a quarter of the multiplications, for float32 inference on the CPU.

Winograd's F(4x4, 3x3): 4x4 outputs from 6x6 inputs through 36 matrix products over the channels instead of the
16 * 9 multiplications of the definition. Source: Lavin and Gray (arXiv 1509.09308), section 4.3.

Everything is laid out (positions, channels), so that gathering the tiles copies whole runs of channels, and goes
through in strips of tile rows that stay in the cache between the three steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcae_core.devices import ProcessorFamily

TILE = 4
_PATCH = TILE + 2
_NUM_FREQUENCIES = _PATCH**2
_TILES_PER_STRIP = 128  # found by measurement: fewer starve the products, more leave the cache

_INPUT_1D = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_WEIGHT_1D = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_OUTPUT_1D = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)
_INPUT_2D, _WEIGHT_2D, _OUTPUT_2D = (
    torch.kron(matrix, matrix).float() for matrix in (_INPUT_1D, _WEIGHT_1D, _OUTPUT_1D)
)


@dataclass(frozen=True)
class Step:
    """Shapes that go the fast way: from `min_channels` in and out on, with `min_tiles` to `max_tiles` tiles of 4x4."""

    min_channels: int
    min_tiles: int
    max_tiles: int | None = None

    def __str__(self) -> str:
        tiles = f"{self.min_tiles} or more" if self.max_tiles is None else f"{self.min_tiles} to {self.max_tiles}"
        return f"from {self.min_channels} channels on with {tiles} tiles of 4x4"


@dataclass(frozen=True)
class Rule:
    """Which 3x3 convolutions go the fast way on a family of processors, and where that was measured.

    A rule and not a measurement at run time: the choice moves results by 1e-6, and the same command must give the
    same bytes every time. docs/performance.md has the measurements behind each.
    """

    steps: tuple[Step, ...]
    reason: str

    def pays(self, in_channels: int, out_channels: int, height: int, width: int) -> bool:
        """Whether the fast way is the faster one for an input of this size."""
        channels, tiles = min(in_channels, out_channels), -(-height // TILE) * -(-width // TILE)
        return any(
            channels >= step.min_channels
            and tiles >= step.min_tiles
            and (step.max_tiles is None or tiles <= step.max_tiles)
            for step in self.steps
        )

    def ever_pays(self, in_channels: int, out_channels: int) -> bool:
        """Whether there is any size of input that the fast way is the faster one for."""
        return any(min(in_channels, out_channels) >= step.min_channels for step in self.steps)

    def __str__(self) -> str:
        route = f"Winograd {', '.join(map(str, self.steps))}" if self.steps else "plain everywhere"
        return f"{route} ({self.reason})"


RULES = {
    ProcessorFamily("Intel", "AVX-512"): Rule((Step(128, 16),), "measured on Sapphire Rapids"),
    ProcessorFamily("AMD", "AVX-512"): Rule((Step(1024, 16, 64),), "measured on Zen 5"),
    ProcessorFamily("AMD", "AVX2"): Rule((Step(512, 256), Step(1024, 16)), "measured on Zen 3"),
}
_PLAIN = Rule((), "not measured on such a processor")


def rule_for(family: ProcessorFamily) -> Rule:
    """The rule of a family of processors; the plain convolution everywhere where none was measured."""
    return RULES.get(family, _PLAIN)


def transform_weight(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (36, C, O): four times the room."""
    out_channels, in_channels = weight.shape[:2]
    by_tap = weight.permute(2, 3, 1, 0).reshape(9, in_channels * out_channels)
    return (_WEIGHT_2D @ by_tap).view(_NUM_FREQUENCIES, in_channels, out_channels)


def winograd_conv2d(x: Tensor, transformed: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution of stride 1 and padding 1.

    Needs, beyond input and output, a padded copy of the input and a few megabytes for one strip.

    Args:
        x: (B, C, H, W) float32 on the CPU, best in channels-last memory format.
        transformed: `transform_weight` of the weight.
        bias: (O,) or None.

    Returns:
        (B, O, H, W) in channels-last memory format, within a relative error of about 3e-6.
    """
    batch, channels, height, width = x.shape
    out_channels = transformed.shape[2]
    tile_rows, tile_columns = -(-height // TILE), -(-width // TILE)
    padding = (0, 0, 1, TILE * tile_columns + 1 - width, 1, TILE * tile_rows + 1 - height)
    padded = F.pad(x.permute(0, 2, 3, 1), padding)
    out = x.new_empty(batch, tile_rows, TILE, tile_columns, TILE, out_channels)
    shift = x.new_zeros(out_channels) if bias is None else bias
    rows_per_strip = max(1, _TILES_PER_STRIP // tile_columns)
    for image, result in zip(padded, out, strict=True):
        for first in range(0, tile_rows, rows_per_strip):
            rows = min(rows_per_strip, tile_rows - first)
            strip = image[TILE * first : TILE * (first + rows) + 2]
            patches = strip.unfold(0, _PATCH, TILE).unfold(1, _PATCH, TILE).permute(3, 4, 0, 1, 2)
            frequencies = (_INPUT_2D @ patches.reshape(_NUM_FREQUENCIES, -1)).view(_NUM_FREQUENCIES, -1, channels)
            products = torch.bmm(frequencies, transformed)
            tiles = (_OUTPUT_2D @ products.flatten(1)).view(TILE, TILE, rows, tile_columns, out_channels)
            torch.add(tiles.permute(2, 0, 3, 1, 4), shift, out=result[first : first + rows])
    whole = out.view(batch, TILE * tile_rows, TILE * tile_columns, out_channels)
    return whole[:, :height, :width].permute(0, 3, 1, 2)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that goes the fast way where `rule` says so, and the plain way elsewhere.

    Shares the parameters of the convolution it stands for. With `keep_transformed`, keeps the transformed weight, four
    times the size of the plain one, from the first call on; otherwise transforms at each call, which the
    rules do not count: docs/performance.md has what it costs.
    """

    def __init__(self, conv: nn.Conv2d, keep_transformed: bool, rule: Rule) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.keep_transformed = keep_transformed
        self.rule = rule
        self._transformed: Tensor | None
        self.register_buffer("_transformed", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H, W)."""
        is_plain = x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled()
        if is_plain or not self.rule.pays(self.in_channels, self.out_channels, *x.shape[2:]):
            return super().forward(x)
        transformed = self._transformed
        if transformed is None:
            transformed = transform_weight(self.weight)
            if self.keep_transformed:
                self._transformed = transformed
        return winograd_conv2d(x, transformed, self.bias)


def fits_winograd(module: nn.Module, rule: Rule) -> bool:
    """Whether a module is a convolution that `WinogradConv2d` can stand for and ever pays for under `rule`."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding == (1, 1)
        and module.groups == 1
        and rule.ever_pays(module.in_channels, module.out_channels)
    )
