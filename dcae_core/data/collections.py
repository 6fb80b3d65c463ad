"""Pictures on disk as the training stream reads them: by number, decoded."""

import os

import numpy as np

from dcae_core.data.sources import PictureList
from dcae_core.errors import DataError


class DecodedOnDemand:
    """A `PictureCollection` that opens a picture each time it is asked for."""

    def __init__(self, pictures: PictureList) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        """What messages call the picture."""
        return self._pictures[index].name

    def identity(self, index: int) -> str:
        """Its name with the size and age of its file: another picture of the same name has another identity.

        Raises:
            DataError: it is missing.
        """
        reference = self._pictures[index]
        try:
            status = os.stat(reference.path)
        except OSError as error:
            raise DataError(f"{reference.name} cannot be read: {error.strerror or error}") from error
        return f"{reference.name} {status.st_size} {status.st_mtime_ns}"

    def pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, upright.

        Raises:
            DataError: it is missing or damaged.
        """
        return np.asarray(self._pictures[index].open())
