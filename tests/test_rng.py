"""Random numbers equal plain Python integers, permutations are permutations, and neighbours are scattered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rng import fold, permute


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
