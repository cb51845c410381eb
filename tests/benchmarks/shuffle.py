"""How well a windowed shuffle mixes, beside the global one, and what it saves: python -m tests.benchmarks.shuffle

Out: a Markdown table for a set of ImageNet's size: over how much of an epoch the samples of one shard spread (standard
deviation of their places, 1 / sqrt(12) = 0.289 if they are anywhere), from how many shards the 256 samples of a batch
come, and how many shards each of 8 machines reads in an epoch.
"""

import numpy as np

from pipeline.data.order import Order, rank_part

SHARDS, IMAGES, BATCH, MACHINES = 1282, 1000, 256, 8


def measure(window: int | None) -> tuple[float, float, float]:
    """(spread of a shard, shards in a batch, shards a machine reads) over one epoch; None: the global shuffle."""
    sizes = None if window is None else np.full(SHARDS, IMAGES)
    order = Order(SHARDS * IMAGES, BATCH, 0, sizes, window or 0)
    batches = np.stack([order.batch(step) for step in range(order.steps_per_epoch)]) // IMAGES
    places = np.repeat(np.arange(len(batches)) / len(batches), BATCH)
    shards = batches.ravel()
    count, total = np.bincount(shards), np.bincount(shards, places)
    spread = np.sqrt(np.maximum(np.bincount(shards, places**2) / count - (total / count) ** 2, 0)).mean()
    mixed = np.mean([len(np.unique(batch)) for batch in batches])
    parts = np.stack([rank_part(batches.T, machine, MACHINES).ravel() for machine in range(MACHINES)])
    return float(spread), float(mixed), float(np.mean([len(np.unique(part)) for part in parts]))


def main() -> None:
    print("| shuffle | spread of a shard | shards in a batch of 256 | shards that each of 8 machines reads |")
    print("|---|---|---|---|")
    for window in (4, 16, 64, 256, None):
        spread, mixed, read = measure(window)
        name = f"windowed, window_shards={window}" if window else "global"
        print(f"| {name} | {spread:.4f} | {mixed:.0f} | {read:.0f} of {SHARDS:,} |")


if __name__ == "__main__":
    main()
