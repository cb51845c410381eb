"""The order is a permutation per epoch, a function of its arguments, and local only when it is asked to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Order, machine_part, rank_part, sequential_batch
from pipeline.errors import UserError
from pipeline.runtime import RankInfo
from tests.test_rng import scalar_fold, scalar_permute


def test_windowed_order_equals_plain_integers():
    """Shards permuted by (seed, epoch, 1), the samples of each run of two shards by (seed, epoch, 2, run)."""
    sizes, window, seed, epoch = [3, 5, 2, 7, 4], 2, 11, 6
    first_id = [sum(sizes[:shard]) for shard in range(5)]
    visited = [scalar_permute(shard, 5, scalar_fold(seed, epoch, 1)) for shard in range(5)]
    expected = []
    for run in range(3):
        ids = [first_id[shard] + k for shard in visited[run * window : (run + 1) * window] for k in range(sizes[shard])]
        places = [scalar_permute(k, len(ids), scalar_fold(seed, epoch, 2, run)) for k in range(len(ids))]
        expected += [ids[place] for place in places]
    order = Order(21, 3, seed, np.array(sizes), window)
    for step in range(7):
        of_batch = order.batch(epoch * 7 + step).tolist()
        assert sorted(of_batch) == sorted(expected[3 * step : 3 * step + 3])
        shards = [
            next(shard for shard in range(5) if first_id[shard] <= i < first_id[shard] + sizes[shard]) for i in of_batch
        ]
        assert [visited.index(shard) for shard in shards] == sorted(visited.index(shard) for shard in shards)


def shard_sizes():
    return st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(sizes=shard_sizes(), window=st.integers(1, 15), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_windowed_order_is_a_permutation(sizes, window, seed, epoch):
    total = sum(sizes)
    ids = Order(total, total, seed, np.array(sizes), window).batch(epoch)
    assert sorted(ids.tolist()) == list(range(total))
    for size in {1, max(1, total // 3)}:  # the same samples in the same steps, however a batch is asked for
        order = Order(total, size, seed, np.array(sizes), window)
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = np.concatenate([order.batch(step) for step in steps])
        assert len(set(batches.tolist())) == len(batches) == total // size * size


def test_ranks_of_a_windowed_batch_read_different_shards():
    """So that each machine fetches its share of the shards, and not every machine all of them."""
    sizes, batch, world = np.full(64, 100), 256, 8
    order = Order(6400, batch, 0, sizes, window=16)
    shards = [set() for _ in range(world)]
    for step in range(order.steps_per_epoch):
        for rank in range(world):
            shards[rank] |= set((rank_part(order.batch(step), rank, world) // 100).tolist())
    assert sum(map(len, shards)) < 4 * 64 < world * 64


@given(sizes=shard_sizes(), window=st.integers(1, 15), seed=st.integers(0, 99))
def test_windowed_order_visits_each_run_of_shards_once(sizes, window, seed):
    total = sum(sizes)
    order = Order(total, 1, seed, np.array(sizes), window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visits = shard_of[np.concatenate([order.batch(step) for step in range(total)])].tolist()
    open_at = sorted(visits.index(shard) for shard in range(len(sizes)))
    for shard in range(len(sizes)):
        last = len(visits) - 1 - visits[::-1].index(shard)
        later = [start for start in open_at if visits.index(shard) < start <= last]
        assert len(later) < window  # no more shards than the window open before this one is done


@settings(max_examples=40)
@given(
    num=st.integers(24, 500),
    windowed=st.booleans(),
    worlds=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=6),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_sequence_of_world_sizes_trains_on_what_one_rank_would(num, windowed, worlds, seed):
    sizes = np.array([num // 2, num - num // 2]) if windowed else None
    order = Order(num, 24, seed, sizes, 1 if windowed else 0)
    for step, world in enumerate(worlds * 3):
        parts = [rank_part(order.batch(step), rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), order.batch(step))


@given(num=st.integers(7, 300), batch=st.integers(1, 7), epoch=st.integers(0, 3))
def test_every_id_once_an_epoch_but_the_tail(num, batch, epoch):
    order = Order(num, batch, 3)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    ids = np.concatenate([order.batch(step) for step in steps])
    assert len(ids) == num - num % batch == len(set(ids.tolist()))
    assert {order.epoch(step) for step in steps} == {epoch}


def test_the_tail_is_another_one_each_epoch():
    order = Order(10, 8, 0)
    left_out = [set(range(10)) - set(order.batch(step).tolist()) for step in range(6)]
    assert len({frozenset(tail) for tail in left_out}) > 1


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(UserError, match=r"train\.global_batch=64 is more than the 50 samples"):
        Order(50, 64, 0)


@given(num=st.integers(1, 100), batch=st.integers(1, 40))
def test_sequential_order_pads_only_the_end(num, batch):
    steps = -(-num // batch)
    ids = np.concatenate([sequential_batch(step, num, batch) for step in range(steps)])
    assert ids.tolist() == list(range(num)) + [-1] * (steps * batch - num)


def test_the_part_of_a_machine_is_that_of_all_its_ranks():
    """Of two machines with three ranks each: ranks 0, 1, 2 and 3, 4, 5."""
    batch = np.arange(100, 112)
    for rank in range(6):
        part = machine_part(batch, RankInfo(rank, 6, rank % 3, 3)).tolist()
        assert part == list(range(100, 106) if rank < 3 else range(106, 112))
        ranks = [rank_part(batch, other, 6).tolist() for other in range(6) if other // 3 == rank // 3]
        assert part == [sample for of_rank in ranks for sample in of_rank]
