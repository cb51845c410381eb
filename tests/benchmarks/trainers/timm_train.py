"""timm's train.py with --amp --channels-last: its loader with the prefetcher, float16 with a GradScaler."""

import torch

from tests.benchmarks.contest import Entry, Task, enter
from tests.benchmarks.loaders import timm_loader
from tests.benchmarks.trainers.loop import over


def start(task: Task) -> Entry:
    return over(timm_loader.start(task), task, dtype=torch.float16, channels_last=True)


if __name__ == "__main__":
    enter(start)
