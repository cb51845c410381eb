"""What the limits share: photos in memory, and full decoding by a pool of threads.

A limit is no loader: nothing is read, cropped (but by DALI), resized, normalised or put into a batch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.bench.contestant import SEED, Feed, Task

NUM_PHOTOS = 4096  # at most; they are held in memory
AHEAD = 2


def photos(folder: Path) -> list[bytes]:
    """The bytes of a random choice of the JPEG files below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chosen = np.random.default_rng(SEED).permutation(len(paths))[:NUM_PHOTOS]
    return [paths[number].read_bytes() for number in chosen]


def batches_of(num: int, batch: int) -> Iterator[np.ndarray]:
    """Endless batches of numbers below `num`, shuffled."""
    rng = np.random.default_rng(SEED)
    while True:
        yield rng.integers(0, num, batch)


def pool(decode: Callable[[bytes], object], task: Task, versions: str) -> Feed:
    """Every photo wholly decoded by one of `task.cores` threads."""
    encoded = photos(task.folder)
    threads = ThreadPoolExecutor(task.cores)

    def part(numbers: np.ndarray) -> None:
        for number in numbers:
            decode(encoded[number])

    def batches() -> Iterator[None]:
        waiting: deque[list[Future]] = deque()
        for numbers in batches_of(len(encoded), task.batch):
            # Eight photos a task, so that the pool's own work hardly counts.
            waiting.append([threads.submit(part, some) for some in np.array_split(numbers, -(-task.batch // 8))])
            if len(waiting) > AHEAD:
                for part_of in waiting.popleft():
                    part_of.result()
                yield None

    return Feed(batches(), AHEAD + 1, versions, makes_batches=False)
