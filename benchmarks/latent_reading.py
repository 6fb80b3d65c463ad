"""Time random single latents from this project's shards, from .npy files, and from safetensors reopened per item.

    python benchmarks/latent_reading.py [DIRECTORY] [--count 40000]

One run measures everything: 40,000 latents of 32x16x16 float16 (655 MB) are written once per layout below DIRECTORY
(default: a temporary one), then the same random items are read from each, first with the files dropped from the page
cache (cold), then again (warm). Last, the training loader runs beside a step that works for a fixed time, and the time
that the step waited for its batch is reported.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from dcae_core.benchmarking.subjects import write_noise
from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents import GlobalShuffle, LatentDataset, load_latents
from dcae_core.data.latents.shard import shard_file_name

SHARD_SIZE = 1000
READS = {"cold": 2000, "warm": 10000}
BATCH = 256
TARGET_RATE = 20_000  # latents per second
WARM_UP_STEPS = 20  # until reading is as far ahead as it may be


def write(directory: Path, count: int) -> None:
    """The same latents as shards and as one .npy file each."""
    dataset = write_noise(directory / "shards", count // SHARD_SIZE, SHARD_SIZE)
    (directory / "npy").mkdir()
    for item in range(len(dataset)):
        np.save(directory / "npy" / f"{item}.npy", dataset[item][0].numpy())


def readers(directory: Path) -> dict[str, Callable[[int], torch.Tensor]]:
    """For each layout, a function from an item's number to its latent."""
    dataset = LatentDataset(directory / "shards")

    def from_npy(item: int) -> torch.Tensor:
        return torch.from_numpy(np.load(directory / "npy" / f"{item}.npy"))

    def from_reopened_safetensors(item: int) -> torch.Tensor:
        path = directory / "shards" / shard_file_name(item // SHARD_SIZE)
        with safe_open(path, "pt") as file:
            return file.get_slice("latents")[item % SHARD_SIZE]

    return {
        "dcae shards": lambda item: dataset[item][0],
        ".npy files": from_npy,
        "safetensors reopened": from_reopened_safetensors,
    }


def drop_from_page_cache(directory: Path) -> None:
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds_per_item(read: Callable[[int], torch.Tensor], items: np.ndarray) -> float:
    start = time.perf_counter()
    for item in items.tolist():
        read(item)
    return (time.perf_counter() - start) / len(items)


def measure_reading(directory: Path, count: int) -> None:
    for state, num_reads in READS.items():
        items = np.random.default_rng(0).integers(0, count, num_reads)
        times = {}
        for name, read in readers(directory).items():
            if state == "cold":
                drop_from_page_cache(directory)
            else:
                seconds_per_item(read, np.arange(count))
            times[name] = seconds_per_item(read, items)
        ours = times["dcae shards"]
        for name, seconds in times.items():
            print(f"{state}: {name:22} {seconds * 1e6:8.1f} us per latent   {seconds / ours:5.1f}x ours")


def measure_loader(directory: Path, num_steps: int = 400) -> None:
    """Feed a step that lasts as long as one at TARGET_RATE would, and add up how long it waits for its batches."""
    dataset, steps = LatentDataset(directory / "shards"), range(WARM_UP_STEPS + num_steps)
    batches = load_latents(dataset, GlobalShuffle(len(dataset), seed=0), BatchPlan(BATCH), steps, lambda batch: batch)
    step_seconds = BATCH / TARGET_RATE
    waits = []
    for _ in steps:
        before = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - before)
        assert len(batch.items) == BATCH
        held = batch  # freeing the batch before is part of the step
        time.sleep(max(0.0, before + step_seconds - time.perf_counter()))
    del held
    waits = waits[WARM_UP_STEPS:]
    print(
        f"loader: beside a step of {step_seconds * 1e3:.1f} ms ({TARGET_RATE:,} latents/s) waited "
        f"{np.mean(waits) / step_seconds:.2%} of it, {np.median(waits) * 1e3:.2f} ms a batch, at most "
        f"{max(waits) * 1e3:.2f} ms"
    )

    start = time.perf_counter()
    order = GlobalShuffle(len(dataset), seed=1)
    for _ in load_latents(dataset, order, BatchPlan(BATCH), range(num_steps), lambda batch: batch):
        pass
    print(f"loader: {num_steps * BATCH / (time.perf_counter() - start):,.0f} latents/s beside nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--count", type=int, default=40_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        directory = Path(temporary)
        write(directory, arguments.count)
        measure_reading(directory, arguments.count)
        measure_loader(directory)


if __name__ == "__main__":
    main()
