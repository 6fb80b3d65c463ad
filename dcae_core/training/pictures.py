"""The pictures of a train-ae recipe: opened once, then cut into batches for each phase."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch

from dcae_core.data.batches import Batch, BatchPlan, CropStream, PictureCollection, load_batches
from dcae_core.data.collections import DecodedOnDemand
from dcae_core.data.crops import CropSettings
from dcae_core.data.decoded_cache import DecodedCache, open_decoded_cache
from dcae_core.data.pictures import uint8_to_tensor
from dcae_core.data.sources import find_pictures
from dcae_core.distributed import barrier, is_local_main
from dcae_core.recipes.train_ae import DataSettings


class TrainingPictures:
    """Random crops of the sources that a recipe names.

    Finding costs one scan of the folders; a decoded cache is filled on the first use.

    Args:
        settings: which pictures, and how they are cut.

    Attributes:
        damaged: lines about pictures that could not be put into the cache.

    Raises:
        DataError: no pictures, or only damaged ones.
        ResourceError: the disk is too full for the cache.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self.damaged: list[str] = []
        self._collections: list[PictureCollection] = [self._open(source.path) for source in settings.sources]

    def __len__(self) -> int:
        return sum(len(collection) for collection in self._collections)

    def batches(self, resolution: int, seed: tuple[int, ...], plan: BatchPlan, steps: range) -> Generator[Batch]:
        """The parts of the given steps that this process computes, decoded by workers."""
        return load_batches(self._stream(resolution, seed), plan, steps, self._settings.num_workers)

    def first_crops(self, count: int, resolution: int, seed: tuple[int, ...]) -> torch.Tensor:
        """(count, 3, resolution, resolution) in [-1, 1], decoded here and now."""
        stream = self._stream(resolution, seed)
        pixels = np.stack([stream[position].pixels for position in range(count)])
        return uint8_to_tensor(torch.from_numpy(pixels))

    def _stream(self, resolution: int, seed: tuple[int, ...]) -> CropStream:
        settings = self._settings
        (smallest, largest), (narrowest, widest) = settings.scale, settings.aspect_ratio
        crops = CropSettings(resolution, (smallest, largest), (narrowest, widest), settings.flip)
        weights = [source.weight for source in settings.sources]
        return CropStream(self._collections, weights, crops, seed, settings.damaged == "skip")

    def _open(self, path: str) -> PictureCollection:
        pictures = DecodedOnDemand(find_pictures([path]))
        if self._settings.decoded_cache is None:
            return pictures
        if is_local_main():
            cache = self._open_cache(pictures)
        barrier()
        if not is_local_main():
            cache = self._open_cache(pictures)
        self.damaged += cache.damaged
        return cache

    def _open_cache(self, pictures: DecodedOnDemand) -> DecodedCache:
        settings = self._settings
        assert settings.decoded_cache is not None
        return open_decoded_cache(
            pictures,
            Path(settings.decoded_cache),
            settings.cache_shorter_side,
            skip_damaged=settings.damaged == "skip",
        )
