"""One measurement of startup.py, in a process of its own: python -m pipeline.bench.startup_child NAME FOLDER STARTED.

In: the name of a function below, the big set, when the process was started (seconds since 1970). Out: a line of JSON,
{what: figure}.
"""

import json
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.startup import GLOBAL_BATCH, HUGE, HUGE_STEPS, NUM_SAMPLES, SEED


def load(folder: Path, started: float) -> dict[str, float]:
    """The index: time to load, and memory that it adds to this process."""
    import gc

    from pipeline.data import index

    gc.collect()
    before = memory_mib()
    start = time.perf_counter()
    loaded = index.load(folder)
    load_ms = 1000 * (time.perf_counter() - start)
    after = memory_mib()
    for column in (loaded.shard, loaded.offset, loaded.size, loaded.label, loaded.height, loaded.width):
        column.max()
    read = memory_mib()
    figures = {"index.load with verify, ms": load_ms}
    for what, now in (("index.load adds", after), ("index, every row read (but the keys)", read)):
        figures[f"{what}: resident, MiB"] = now["Rss"] - before["Rss"]
        figures[f"{what}: private (files that only this process maps included), MiB"] = _private(now) - _private(before)
        figures[f"{what}: anonymous (what processes do not share), MiB"] = now["Anonymous"] - before["Anonymous"]
    return figures


def first_batch(folder: Path, started: float) -> dict[str, float]:
    """From the start of the process, imports included, to the first batch of 256 on the device."""
    import torch

    from pipeline.config import Data
    from pipeline.data.index import load
    from pipeline.data.loader import order_of, train_batches
    from pipeline.runtime import RankInfo

    imported = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index, data = load(folder), Data()
    order = order_of(index, data, GLOBAL_BATCH, SEED)
    rank_info = RankInfo(rank=0, world=1, local_rank=0, local_world=1)
    steps: dict[str, Any] = {"micro_steps": 1, "steps": range(0, order.steps_per_epoch)}
    batch = next(train_batches(index, data, order, rank_info=rank_info, device=device, **steps))
    batch.images.sum().item()
    now = time.time()
    return {
        f"process start to the first batch of {GLOBAL_BATCH} on the {device.type}, s": now - started,
        "of which: Python and the import of torch, s": imported - started,
    }


def order(folder: Path, started: float) -> dict[str, float]:
    """Ids and windows (recipe inception with colours) of all batches of an epoch."""
    from pipeline.data import index

    loaded = index.load(folder, verify=False)
    heights, widths = np.asarray(loaded.height), np.asarray(loaded.width)
    return _time_steps(f"{NUM_SAMPLES:,}", NUM_SAMPLES, heights, widths, list(range(NUM_SAMPLES // GLOBAL_BATCH)))


def huge_order(folder: Path, started: float) -> dict[str, float]:
    """The same for a set of 10^9 images, at random steps; all images are 500 x 375."""
    steps = np.random.default_rng(SEED).integers(0, HUGE // GLOBAL_BATCH, HUGE_STEPS).tolist()
    heights, widths = np.broadcast_to(np.int32(375), HUGE), np.broadcast_to(np.int32(500), HUGE)
    return _time_steps("10^9", HUGE, heights, widths, steps)


def _time_steps(name: str, num: int, heights: np.ndarray, widths: np.ndarray, steps: list[int]) -> dict[str, float]:
    """Time of the steps, and the peak of what Python and NumPy allocate in the first 50 of them."""
    from pipeline.data import crops
    from pipeline.data.order import Order

    chosen = Order(num, GLOBAL_BATCH, SEED)
    pca = (crops.IMAGENET_EIGENVALUES, crops.IMAGENET_EIGENVECTORS, 0.1)

    def see(step: int) -> tuple[float, float]:
        start = time.perf_counter()
        ids = chosen.batch(step)
        ordered = time.perf_counter()
        at = (heights[ids], widths[ids], ids, SEED, chosen.epoch(step))
        crops.inception(*at, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), pca=pca)
        return ordered - start, time.perf_counter() - ordered

    see(steps[-1])
    order_s, windows_s = np.array([see(step) for step in steps]).T
    tracemalloc.start()
    for step in steps[:50]:
        see(step)
    peak_kib = tracemalloc.get_traced_memory()[1] / 1024
    both_s = order_s + windows_s
    return {
        f"{name} images, {len(steps):,} batches of {GLOBAL_BATCH}: order and windows of all, s": both_s.sum(),
        f"{name} images: order of a batch, ms": 1000 * order_s.mean(),
        f"{name} images: windows of a batch (recipe inception), ms": 1000 * windows_s.mean(),
        f"{name} images: the longest of both, ms": 1000 * both_s.max(),
        f"{name} images: peak of allocated memory, KiB": peak_kib,
    }


def memory_mib() -> dict[str, float]:
    """This process's memory by kind, from the kernel."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def _private(memory: dict[str, float]) -> float:
    return memory["Private_Clean"] + memory["Private_Dirty"]


if __name__ == "__main__":
    measurements = {function.__name__: function for function in (load, first_batch, order, huge_order)}
    print(json.dumps(measurements[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]))))
