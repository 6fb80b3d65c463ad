"""Small latent datasets for the tests of this folder."""

from pathlib import Path

import torch

from dcae_core.data.latents import DatasetPlan, LatentDatasetWriter, Manifest
from dcae_core.data.latents.manifest import DamagedRecord, EncoderRecord, TransformRecord
from dcae_core.data.latents.shard import TORCH_DTYPES

ENCODER = EncoderRecord(name="dc-ae-f32c32-tiny-1.0", fingerprint="a" * 64, scaling_factor=0.5)


def latent_of(item: int, shape: tuple[int, int, int] = (4, 2, 3), dtype: str = "float16") -> torch.Tensor:
    """The latent that every dataset of these tests has at place `item`."""
    generator = torch.Generator().manual_seed(item)
    return torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype])


def plan(counts: list[int], dtype: str = "float16", *, flipped: bool = False) -> DatasetPlan:
    return DatasetPlan(
        encoder=ENCODER,
        transform=TransformRecord(resolution=64, flipped_copies=flipped),
        encoding={"batch_size": 2},
        dtype=dtype,
        latent_shape=(4, 2, 3),
        classes=["a", "b", "c"],
        num_shards=len(counts),
    )


def write_shard(writer: LatentDatasetWriter, counts: list[int], number: int) -> None:
    items = range(sum(counts[:number]), sum(counts[: number + 1]))
    latents = [latent_of(item, dtype=writer.plan.dtype) for item in items]
    writer.write_shard(
        number,
        torch.stack(latents) if latents else torch.empty((0, 4, 2, 3), dtype=TORCH_DTYPES[writer.plan.dtype]),
        torch.tensor([item % 3 for item in items]),
        [
            f"{'abc'[item % 3]}/image {item:03d}.jpg"
            for item in items[:: 2 if writer.plan.transform.flipped_copies else 1]
        ],
        [DamagedRecord(picture=f"broken {number}.jpg", reason="truncated")] if number == 1 else [],
    )


def write_dataset(directory: Path, counts: list[int], dtype: str = "float16", *, flipped: bool = False) -> Manifest:
    writer = LatentDatasetWriter(directory, plan(counts, dtype, flipped=flipped))
    writer.begin()
    for number in range(len(counts)):
        write_shard(writer, counts, number)
    return writer.finish()


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
