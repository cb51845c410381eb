"""Ours: pipeline.data.loader over a packed set, in any storage form, as launch.train calls it."""

import torch

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, LR, MEAN, SEED, STD, Feed, Task, enter, versions
from pipeline.config import Config, Data
from pipeline.config_io import apply, parse
from pipeline.data.index import Index, load
from pipeline.data.loader import order_of
from pipeline.data.order import Order
from pipeline.runtime import RankInfo

ALONE = RankInfo(rank=0, world=1, local_rank=0, local_world=1)


def start(task: Task) -> Feed:
    from nvidia import dali

    from pipeline.data.loader import train_batches

    index, data, order = task_of(task)
    batches = train_batches(
        index,
        data,
        order,
        rank_info=ALONE,
        device=torch.device(task.device),
        micro_steps=1,
        steps=range(0, 10**9),
    )
    ahead = 2 * data.prefetch + 2  # the decoder's and those that are being finished
    return Feed((batch.images for batch in batches), ahead, f"DALI {dali.__version__}, {versions('torch')}")


def config_of(task: Task) -> Config:
    """The agreed task as a config, changed by the task's own settings."""
    data = {"recipe": "inception", "crop_px": CROP_PX, "area": AREA, "aspect": ASPECT, "pca_std": 0, "mean": MEAN}
    data |= {"std": STD, "threads": task.cores, "train": str(task.folder)}
    tree = {
        "run": "none",
        "seed": SEED,
        "data": data,
        "model": {"name": task.model},
        "optimizer": {"lr": LR},
        "train": {"global_batch": task.batch},
    }
    for word in task.settings:
        apply(tree, word)
    return parse(tree, "benchmark")


def task_of(task: Task) -> tuple[Index, Data, Order]:
    """The set, how it is read, and in which order."""
    index, data = load(task.folder), config_of(task).data
    return index, data, order_of(index, data, task.batch, SEED)


if __name__ == "__main__":
    enter(start)
