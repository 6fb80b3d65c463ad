"""Batches of latents for training, read ahead by threads while the network works."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents.order import Order
from dcae_core.data.latents.reader import LatentDataset
from dcae_core.data.read_ahead import read_ahead
from dcae_core.errors import UsageError

Finished = TypeVar("Finished")


@dataclass(frozen=True)
class LatentBatch:
    """What one process computes on at once.

    Attributes:
        latents: (b, C, h, w), unscaled, in their stored dtype.
        labels: (b,) int64.
        positions: (b,) places in the endless stream of items: what noise is drawn from.
        items: (b,) which items of the dataset these are.
        seconds: time that reading took.
    """

    latents: Tensor
    labels: Tensor
    positions: np.ndarray
    items: np.ndarray
    seconds: float


def load_latents(
    dataset: LatentDataset,
    order: Order,
    plan: BatchPlan,
    steps: range,
    finish: Callable[[LatentBatch], Finished],
    *,
    batches_ahead: int = 8,
    steps_ahead: int = 0,
    num_threads: int = 1,
) -> Iterator[Finished]:
    """What one process computes on in the given steps: `plan.accumulation` batches for each step.

    A pure function of its arguments: a run that stops after step s goes on with `range(s + 1, ...)`. UsageError where
    the batch is larger than the dataset.

    Args:
        dataset: where the latents lie.
        order: which item comes at which position.
        plan: how a global batch is divided among processes and parts.
        steps: the steps to load for.
        finish: turns a batch into what is returned, also in the threads.
        batches_ahead: how many batches are read before they are wanted; that many are held in memory.
        steps_ahead: how many steps ahead shards are fetched (remote datasets: a window's worth; 0: never).
        num_threads: threads that read. One feeds 20,000 latents/s; more help only where reading waits for a slow disk,
            and make the training thread wait for Python's lock.
    """
    if plan.batch_size > len(dataset):
        raise UsageError(
            f"{dataset.store.where} holds {len(dataset)} latents, fewer than one batch of {plan.batch_size}; "
            "lower the batch size"
        )

    def read(step_and_part: tuple[int, int]) -> Finished:
        start = time.perf_counter()
        positions = np.asarray(plan.positions(*step_and_part))
        if steps_ahead:
            later, _ = dataset.locate(order.items(positions + steps_ahead * plan.batch_size))
            dataset.prefetch(np.unique(later))
        items = order.items(positions)
        latents, labels = dataset.read(items)
        return finish(LatentBatch(latents, labels, positions, items, time.perf_counter() - start))

    wanted = ((step, part) for step in steps for part in range(plan.accumulation))
    return read_ahead(wanted, read, num_ahead=batches_ahead, num_threads=num_threads)
