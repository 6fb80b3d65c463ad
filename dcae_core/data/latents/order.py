"""In which order training sees the items: pure functions of (seed, position), so that resuming is only a number.

Position p counts the items seen since the first step, over all epochs and processes. Batch s of B items is positions
s * B ... (s + 1) * B - 1, and each process takes its slice; nothing depends on how many processes there are.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from dcae_core.errors import UsageError

_ROUNDS = 6


class Order(Protocol):
    """Maps positions to items."""

    def items(self, positions: np.ndarray) -> np.ndarray:
        """Item index of each position, both (n,) int64."""


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a well-scattered function of 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffle_positions(positions: np.ndarray, size: int, key: Sequence[int]) -> np.ndarray:
    """Apply the pseudo-random permutation of 0..size-1 that belongs to `key`: no table, so any size costs no memory.

    A balanced Feistel network over the next power of four, walked until it lands inside the range again (fewer than
    four evaluations on average). Positions are (n,) integers in [0, size), the key non-negative ones: (seed, epoch).

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), cycle walking; SplitMix64 as round
        function.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        result[outside] = (left << half) | right
        outside = result >= size
    return result.astype(np.int64)


class GlobalShuffle:
    """Every epoch is a fresh permutation of all items. Needs random access to the whole set; holds no table."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed

    def items(self, positions: np.ndarray) -> np.ndarray:
        """Item index of each position, both (n,) int64."""
        result = np.empty(len(positions), dtype=np.int64)
        epochs = positions // self.count
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            result[here] = shuffle_positions(positions[here] % self.count, self.count, (self.seed, epoch))
        return result


class WindowShuffle:
    """Shards in random order, items shuffled within a window of neighbouring shards.

    Whole shards are read one after another and never again in that epoch, so they may lie behind a network.

    The shards are dealt to `lanes` independent streams; a batch takes an equal run of consecutive items from each.
    Where `lanes` is a multiple of the number of processes, every process reads only its own lanes' shards, and the
    batch is still the same for any number of processes. Lanes may differ by one shard in length: their epochs then
    drift apart, and an item of a shorter lane is seen slightly more often.

    Args:
        shard_counts: items of each shard.
        seed: chooses the order.
        window: shards that are shuffled together; each lane holds about two windows of them at a time.
        lanes: independent streams; UsageError if there are more than shards with items in them.
        run: consecutive positions that belong to one lane: batch size / lanes.
    """

    def __init__(
        self, shard_counts: Sequence[int] | np.ndarray, seed: int, *, window: int = 16, lanes: int = 1, run: int = 1
    ) -> None:
        counts = np.asarray(shard_counts, dtype=np.int64)
        starts = np.cumsum(counts) - counts
        filled = np.flatnonzero(counts)
        if len(filled) < lanes:
            raise UsageError(f"{lanes} lanes need at least as many shards, there are {len(filled)}; lower the lanes")
        dealt = filled[shuffle_positions(np.arange(len(filled)), len(filled), (seed, 0))]
        self.seed = seed
        self.window = window
        self.num_lanes = lanes
        self.run = run
        self._counts = counts
        self._starts = starts
        self._lanes = [np.sort(dealt[lane::lanes]) for lane in range(lanes)]
        self._lane_sizes = [int(counts[shards].sum()) for shards in self._lanes]
        self._epoch = lru_cache(maxsize=4 * lanes)(self._shuffle_shards)

    def items(self, positions: np.ndarray) -> np.ndarray:
        """Item index of each position, both (n,) int64."""
        result = np.empty(len(positions), dtype=np.int64)
        blocks, within = positions // self.run, positions % self.run
        lanes = blocks % self.num_lanes
        offsets = blocks // self.num_lanes * self.run + within
        for lane in np.unique(lanes).tolist():
            size = self._lane_sizes[lane]
            epochs = offsets // size
            for epoch in np.unique(epochs[lanes == lane]).tolist():
                here = (lanes == lane) & (epochs == epoch)
                result[here] = self._items_of_epoch(lane, epoch, offsets[here] % size)
        return result

    def _shuffle_shards(self, lane: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The lane's shards in this epoch's order, and where each ends in the stream."""
        shards = self._lanes[lane]
        order = shards[shuffle_positions(np.arange(len(shards)), len(shards), (self.seed, 1, lane, epoch))]
        return order, np.cumsum(self._counts[order])

    def _items_of_epoch(self, lane: int, epoch: int, offsets: np.ndarray) -> np.ndarray:
        shards, ends = self._epoch(lane, epoch)
        windows = np.searchsorted(ends, offsets, side="right") // self.window
        result = np.empty(len(offsets), dtype=np.int64)
        for number in np.unique(windows).tolist():
            here = windows == number
            first, last = number * self.window, min((number + 1) * self.window, len(shards)) - 1
            start = int(ends[first - 1]) if first else 0
            size = int(ends[last]) - start
            shuffled = start + shuffle_positions(offsets[here] - start, size, (self.seed, 2, lane, epoch, number))
            place = np.searchsorted(ends, shuffled, side="right")
            result[here] = self._starts[shards[place]] + shuffled - (ends[place] - self._counts[shards[place]])
        return result
