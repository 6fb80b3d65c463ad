"""Batches of latents for training, read ahead by threads while the network works."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from dcae_core.data.latents.order import Order
from dcae_core.data.latents.reader import LatentDataset
from dcae_core.errors import UsageError


class LatentLoader:
    """One process's slices of an endless sequence of batches; slice s is a pure function of (order, s).

    Args:
        dataset: where the latents lie.
        order: which item comes at which position.
        batch_size: items per step, over all processes.
        rank: this process's number.
        world_size: number of processes; it must divide `batch_size`.
        batches_ahead: how many slices are read before they are wanted; holds that many in memory.
        shards_ahead: how many batches ahead shards are fetched (remote datasets: about a window's worth; 0: never).
        num_threads: threads that read.

    Raises:
        UsageError: the batch cannot be divided, or is larger than the dataset.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        order: Order,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        batches_ahead: int = 8,
        shards_ahead: int = 0,
        num_threads: int = 2,
    ) -> None:
        if batch_size % world_size:
            raise UsageError(f"a batch of {batch_size} cannot be divided among {world_size} processes")
        if batch_size > len(dataset):
            raise UsageError(
                f"{dataset.store.where} holds {len(dataset)} latents, fewer than one batch of {batch_size}; "
                "lower the batch size"
            )
        self.dataset = dataset
        self.order = order
        self.batch_size = batch_size
        self.batches_ahead = batches_ahead
        self.shards_ahead = shards_ahead
        self.num_threads = num_threads
        self._slice = np.arange(batch_size).reshape(world_size, -1)[rank]

    def items(self, step: int) -> np.ndarray:
        """Item indices of this process's slice of batch `step`."""
        return self.order.items(self._slice + step * self.batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """One process's slice of batch `step`: unscaled latents (b, C, h, w) as stored, labels (b,)."""
        return self.dataset.read(self.items(step))

    def iterate(self, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Slices of batch `first_step` and all that follow, without end. Errors come where their batch would."""
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="latents") as pool:
            waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
            step = first_step
            try:
                while True:
                    while len(waiting) < self.batches_ahead:
                        waiting.append(pool.submit(self._read_and_look_ahead, step))
                        step += 1
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read_and_look_ahead(self, step: int) -> tuple[Tensor, Tensor]:
        if self.shards_ahead:
            numbers, _ = self.dataset.locate(self.items(step + self.shards_ahead))
            self.dataset.prefetch(np.unique(numbers))
        return self.batch(step)
