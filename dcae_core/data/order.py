"""Which picture comes at which position of an endless training stream: a function of the seed alone.

Any position can be asked for directly, so a run goes on anywhere, with any number of workers and processes.
"""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def _permutation(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([*seed, epoch]).permutation(count)


class PictureOrder:
    """Position in the stream -> source and picture in it.

    One source: every epoch is a fresh permutation of its pictures (8 bytes a picture, for two epochs). Several: each
    position draws a source by weight and a picture of it uniformly.

    Args:
        seed: numbers that the order follows from, not negative.
        counts: pictures in each source, at least 1.
        weights: how often each source is drawn from, relative to the others.
    """

    def __init__(self, seed: tuple[int, ...], counts: list[int], weights: list[float]) -> None:
        self._seed = seed
        self._counts = counts
        self._weights = np.asarray(weights) / np.sum(weights)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(source, picture) at this position, from 0."""
        if len(self._counts) == 1:
            epoch, place = divmod(position, self._counts[0])
            return 0, int(_permutation(self._seed, epoch, self._counts[0])[place])
        generator = np.random.default_rng([*self._seed, position])
        source = int(generator.choice(len(self._counts), p=self._weights))
        return source, int(generator.integers(self._counts[source]))
