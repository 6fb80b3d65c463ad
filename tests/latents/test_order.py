"""Sampling orders: every item once per epoch, the same for any number of processes, resumable from a number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcae_core.data.batches import BatchPlan
from dcae_core.data.latents import GlobalShuffle, LatentDataset, WindowShuffle, load_latents
from dcae_core.data.latents.loader import LatentBatch
from dcae_core.data.latents.order import shuffle_positions
from dcae_core.errors import UsageError

from .datasets import write_dataset


def _pair(batch: LatentBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.latents, batch.labels


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_shuffling_is_a_permutation(size, seed, epoch):
    shuffled = shuffle_positions(np.arange(size), size, (seed, epoch))
    assert np.array_equal(np.sort(shuffled), np.arange(size))


def test_shuffling_is_even():
    """Over many keys every item is as likely as any other to come at any place, and so are pairs of neighbours."""
    size, keys = 7, 3000
    table = np.stack([shuffle_positions(np.arange(size), size, (key,)) for key in range(keys)])
    places = np.stack([(table == item).sum(axis=0) for item in range(size)])
    chi_square = ((places - keys / size) ** 2 / (keys / size)).sum()
    assert chi_square < 80  # 36 degrees of freedom: beyond 80 once in 30,000
    pairs = np.bincount(table[:, 0] * size + table[:, 1], minlength=size * size).reshape(size, size)
    expected = keys / (size * (size - 1))
    off_diagonal = pairs[~np.eye(size, dtype=bool)]
    assert ((off_diagonal - expected) ** 2 / expected).sum() < 90  # 41 degrees of freedom
    assert np.trace(pairs) == 0


def test_ten_billion_items_cost_no_memory():
    size = 10_000_000_000
    order = GlobalShuffle(size, seed=3)
    items = order.items(np.arange(size - 4, size + 4))
    assert len(np.unique(items)) == 8
    assert 0 <= items.min() <= items.max() < size


def test_global_shuffle_shows_every_item_once_per_epoch():
    order = GlobalShuffle(103, seed=1)
    stream = order.items(np.arange(309)).reshape(3, 103)
    for epoch in stream:
        assert np.array_equal(np.sort(epoch), np.arange(103))
    assert not np.array_equal(stream[0], stream[1])
    assert not np.array_equal(stream[0], GlobalShuffle(103, seed=2).items(np.arange(103)))


@pytest.mark.parametrize("lanes", [1, 3])
def test_window_shuffle_shows_every_item_once_per_epoch_and_few_shards_at_a_time(lanes):
    counts = [6, 6, 0, 6, 5, 6, 6, 6, 6, 6, 6, 6, 1]
    counts = counts if lanes == 1 else [6] * 12
    total = sum(counts)
    order = WindowShuffle(counts, seed=4, window=2, lanes=lanes, run=2)
    epochs = order.items(np.arange(2 * total)).reshape(2, total)
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.arange(total))
    assert not np.array_equal(epochs[0], epochs[1])

    shards = np.searchsorted(np.cumsum(counts), epochs[0], side="right")
    last_seen = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in set(shards.tolist())}
    first_seen = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in set(shards.tolist())}
    open_at = [sum(first_seen[s] <= place <= last_seen[s] for s in first_seen) for place in range(total)]
    assert max(open_at) <= 2 * lanes


def test_each_lane_reads_its_own_shards():
    order = WindowShuffle([4] * 8, seed=0, window=2, lanes=2, run=3)
    items = order.items(np.arange(6 * 10)).reshape(10, 2, 3)
    shards = [set((items[:, lane] // 4).ravel().tolist()) for lane in range(2)]
    assert not shards[0] & shards[1]
    assert shards[0] | shards[1] == set(range(8))


def test_more_lanes_than_shards_are_refused():
    with pytest.raises(UsageError, match="3 lanes need at least as many shards, there are 2"):
        WindowShuffle([4, 0, 4], seed=0, lanes=3)


@pytest.mark.parametrize("kind", ["global", "window"])
def test_processes_share_the_batch_and_resume_exactly(tmp_path, kind):
    write_dataset(tmp_path, [5, 5, 5, 3])
    dataset = LatentDataset(tmp_path)
    order = (
        GlobalShuffle(len(dataset), seed=7)
        if kind == "global"
        else WindowShuffle(dataset.shard_counts, seed=7, window=2, lanes=2, run=3)
    )
    uninterrupted = list(load_latents(dataset, order, BatchPlan(6), range(7), _pair))
    assert len(uninterrupted) == 7
    thirds = [
        load_latents(dataset, order, BatchPlan(6, world_size=3, rank=rank), range(2, 7), _pair) for rank in range(3)
    ]
    for latents, labels in uninterrupted[2:]:
        parts = [next(third) for third in thirds]
        assert torch.equal(torch.cat([part[0] for part in parts]), latents)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_a_dataset_smaller_than_a_batch_is_refused(tmp_path):
    write_dataset(tmp_path, [5])
    dataset = LatentDataset(tmp_path)
    order = GlobalShuffle(5, seed=0)
    with pytest.raises(UsageError, match="holds 5 latents, fewer than one batch of 6"):
        load_latents(dataset, order, BatchPlan(6), range(1), _pair)
