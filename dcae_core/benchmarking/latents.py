"""Reading random latents as a benchmark subject."""

import itertools
from pathlib import Path

import numpy as np
import torch

from dcae_core.benchmarking.measuring import Contestant, Subject
from dcae_core.data.latents import DatasetPlan, LatentDataset, LatentDatasetWriter
from dcae_core.data.latents.manifest import EncoderRecord, TransformRecord

_SHAPE = (32, 16, 16)
_NUM_SHARDS, _SHARD_SIZE = 8, 512
_BATCH = 256


def reading_subject(directory: Path) -> Subject:
    """Random batches of 256 latents of 32x16x16 from a dataset of 67 MB, which is written to `directory` first.

    Raises:
        ResourceError: there is no room.
    """
    dataset = write_noise(directory, _NUM_SHARDS, _SHARD_SIZE)
    batches = np.random.default_rng(0).integers(0, len(dataset), (64, _BATCH))
    order = itertools.cycle(batches)

    def call() -> None:
        dataset.read(next(order))

    setting = f"{' x '.join(map(str, _SHAPE))} float16, batch {_BATCH}, page cache warm"
    moved = _BATCH * dataset.manifest.item_bytes
    return Subject("latent-reading", setting, _BATCH, None, moved, [Contestant("dcae", call)])


def write_noise(directory: Path, num_shards: int, shard_size: int) -> LatentDataset:
    """A dataset of random latents of 32x16x16 float16, 16 KB each; shard i follows from i.

    Raises:
        ResourceError: there is no room.
    """
    plan = DatasetPlan(
        encoder=EncoderRecord(name="noise", scaling_factor=1.0),
        transform=TransformRecord(resolution=512),
        encoding={},
        dtype="float16",
        latent_shape=_SHAPE,
        classes=[],
        num_shards=num_shards,
    )
    writer = LatentDatasetWriter(directory, plan)
    writer.begin()
    for number in range(num_shards):
        latents = torch.randn(shard_size, *_SHAPE, generator=torch.Generator().manual_seed(number)).half()
        names = [str(number * shard_size + item) for item in range(shard_size)]
        writer.write_shard(number, latents, torch.zeros(shard_size, dtype=torch.long), names, [])
    writer.finish()
    return LatentDataset(directory)
