"""Random numbers without state: permutations, uniform and normal numbers as functions of keys and ids.

In: non-negative integers (seed, epoch, what for) and ids. Out: the same numbers on every machine, in any order and
company of ids, for ever: a resumed run finds what an older version of this code began with.
"""

from functools import lru_cache

import numpy as np

_ROUNDS = 6  # of the Feistel network


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: uint64 -> well-mixed uint64, the only source of randomness in the data path.

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    values = values.astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        values += np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(1 << 12)  # a batch of windows asks for dozens of keys, the same ones all through an epoch
def fold(*numbers: int) -> np.uint64:
    """One uint64 key out of several non-negative integers, all of whose bits and places count."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix(key ^ mix(np.array([number], np.uint64)))
    return key[0]


def permute(positions: np.ndarray, num: int, key: np.uint64) -> np.ndarray:
    """The images of `positions` under the permutation of range(num) that `key` names.

    A Feistel network on the next even power of two, walked on until the value falls below `num` (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). Time and memory grow with len(positions), not with `num`.
    """
    half = np.uint64(max(1, (int(num - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [fold(int(key), number) for number in range(_ROUNDS)]

    def encrypt(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        return (left << half) | right

    values = encrypt(positions.astype(np.uint64))
    while (outside := np.flatnonzero(values >= np.uint64(num))).size:
        values[outside] = encrypt(values[outside])
    return values.astype(np.int64)


def uniform(seed: int, epoch: int, ids: np.ndarray, stream: int | range) -> np.ndarray:
    """One float64 in [0, 1) per id, a function of the arguments alone; 53 random bits. Of several streams: [k, n]."""
    keys = fold(seed, epoch, stream) if isinstance(stream, int) else np.array([[fold(seed, epoch, k)] for k in stream])
    bits = mix(mix(ids.astype(np.uint64)) ^ keys)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, epoch: int, ids: np.ndarray, stream: int) -> np.ndarray:
    """One standard normal float64 per id (Box-Muller); uses `stream` and `stream + 1`."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, epoch, ids, stream)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, epoch, ids, stream + 1))
