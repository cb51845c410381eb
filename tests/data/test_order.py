"""The order is a permutation per epoch, a function of its arguments, and local only when it is asked to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Order, fold, machine_part, permute, rank_part, sequential_batch
from pipeline.errors import UserError
from pipeline.runtime import Place


def scalar_mix(value: int) -> int:
    """SplitMix64 in plain Python integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_fold_equals_plain_integers(numbers):
    key = 0
    for number in numbers:
        key = scalar_mix(key ^ scalar_mix(number))
    assert int(fold(*numbers)) == key


@given(num=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_permute_is_a_permutation(num, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(num), num, fold(seed, epoch))), np.arange(num))


def scalar_fold(*numbers: int) -> int:
    key = 0
    for number in numbers:
        key = scalar_mix(key ^ scalar_mix(number))
    return key


def scalar_permute(position: int, num: int, key: int) -> int:
    """A Feistel network of six rounds on 2 * half bits, the fewest that hold num - 1, walked on until it is inside."""
    half = 1
    while 2 ** (2 * half) < num:
        half += 1
    while True:
        left, right = position >> half, position % 2**half
        for number in range(6):
            left, right = right, left ^ scalar_mix(right ^ scalar_fold(key, number)) % 2**half
        position = (left << half) + right
        if position < num:
            return position


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 64, 65, 1000])
def test_permute_equals_plain_integers(num):
    """A resumed run must find the order that an older version of this code began with."""
    key = scalar_fold(7, 3)
    expected = [scalar_permute(position, num, key) for position in range(num)]
    assert permute(np.arange(num), num, np.uint64(key)).tolist() == expected


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


def test_permute_answers_for_any_positions_of_a_huge_set():
    num = 10**12
    positions = np.array([0, 7, num - 1])
    values = permute(positions, num, fold(1))
    assert len(set(values.tolist())) == 3
    assert values.min() >= 0
    assert values.max() < num
    assert permute(positions[1:2], num, fold(1))[0] == values[1]


def test_neighbours_are_scattered_and_epochs_differ():
    num = 10_000
    first, second = (permute(np.arange(num), num, fold(0, epoch)) for epoch in (0, 1))
    for shuffled in (first, second):
        assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.04
        assert abs(np.corrcoef(np.arange(num), shuffled)[0, 1]) < 0.04
        # A random permutation moves a value by num / 3 on average.
        assert np.abs(shuffled - np.arange(num)).mean() == pytest.approx(num / 3, rel=0.05)
    assert (first == second).mean() < 0.01


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
        part = machine_part(batch, Place(rank, 6, rank % 3, 3)).tolist()
        assert part == list(range(100, 106) if rank < 3 else range(106, 112))
        ranks = [rank_part(batch, other, 6).tolist() for other in range(6) if other // 3 == rank // 3]
        assert part == [sample for of_rank in ranks for sample in of_rank]
