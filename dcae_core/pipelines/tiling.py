"""How a long axis is cut into overlapping tiles whose results fade into each other.

Along each axis every position belongs to one tile, or lies in the fade between two. Of the stretch that two tiles
share, the middle half is the fade. The quarters beside it are computed and thrown away: there a tile has seen zeros
where the picture goes on.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

MIN_TILE = 4  # latent positions; fewer leave nothing between the margins


@dataclass(frozen=True)
class Tile:
    """One tile along one axis, in latent positions.

    Attributes:
        start: its first position.
        stop: one past its last position.
        fade_in: where (as a real coordinate) its weight is 1/2 on the way up; None at the start of the axis.
        fade_out: where its weight is 1/2 on the way down; None at the end of the axis.
        fade: length of each fade.
    """

    start: int
    stop: int
    fade_in: float | None
    fade_out: float | None
    fade: float

    def weights(self, resolution: int) -> Tensor:
        """What its results count for: (resolution * (stop - start),) in [0, 1], `resolution` values per position.

        The weights of all tiles of an axis add up to 1 everywhere.
        """
        centres = self.start + (torch.arange((self.stop - self.start) * resolution) + 0.5) / resolution
        weights = torch.ones_like(centres)
        if self.fade_in is not None:
            weights = weights * _raised_cosine((centres - self.fade_in) / self.fade + 0.5)
        if self.fade_out is not None:
            weights = weights * (1 - _raised_cosine((centres - self.fade_out) / self.fade + 0.5))
        return weights


def _raised_cosine(x: Tensor) -> Tensor:
    """0 for x <= 0, 1 for x >= 1, and half a cosine period between."""
    return 0.5 - 0.5 * torch.cos(torch.pi * x.clamp(0, 1))


def plan_tiles(length: int, tile: int) -> list[Tile]:
    """Cut an axis of `length` latent positions into evenly spaced tiles of `tile` positions.

    Neighbours share at least a quarter of a tile; the middle half of that is the fade. One tile if it holds the axis.
    """
    assert tile >= MIN_TILE
    if length <= tile:
        return [Tile(0, length, None, None, 1.0)]
    overlap = max(tile // 4, 2)
    fade = overlap / 2
    count = ceil((length - overlap) / (tile - overlap))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    middles = [(next_start + start + tile) / 2 for start, next_start in pairwise(starts)]
    return [
        Tile(start, start + tile, before, after, fade)
        for start, before, after in zip(starts, [None, *middles], [*middles, None], strict=True)
    ]
