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
    dataset = _write(directory)
    batches = np.random.default_rng(0).integers(0, len(dataset), (64, _BATCH))
    order = itertools.cycle(batches)

    def call() -> None:
        dataset.read(next(order))

    setting = f"{' x '.join(map(str, _SHAPE))} float16, batch {_BATCH}, page cache warm"
    moved = _BATCH * dataset.manifest.item_bytes
    return Subject("latent-reading", setting, _BATCH, None, moved, [Contestant("dcae", call)])


def _write(directory: Path) -> LatentDataset:
    plan = DatasetPlan(
        encoder=EncoderRecord(name="noise", scaling_factor=1.0),
        transform=TransformRecord(resolution=512),
        encoding={},
        dtype="float16",
        latent_shape=_SHAPE,
        classes=[],
        num_shards=_NUM_SHARDS,
    )
    writer = LatentDatasetWriter(directory, plan)
    writer.begin()
    for number in range(_NUM_SHARDS):
        latents = torch.randn(_SHARD_SIZE, *_SHAPE, generator=torch.Generator().manual_seed(number)).half()
        names = [str(number * _SHARD_SIZE + item) for item in range(_SHARD_SIZE)]
        writer.write_shard(number, latents, torch.zeros(_SHARD_SIZE, dtype=torch.long), names, [])
    writer.finish()
    return LatentDataset(directory)
