"""Pictures on disk as the training stream reads them: by number, decoded."""

import numpy as np

from dcae_core.data.sources import PictureList


class DecodedOnDemand:
    """A `PictureCollection` that opens a picture each time it is asked for."""

    def __init__(self, pictures: PictureList) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        """What messages call the picture."""
        return self._pictures[index].name

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, upright.

        Raises:
            DataError: it is missing or damaged.
        """
        return np.asarray(self._pictures[index].open())
