"""timm's train.py with --amp --channels-last: its loader with the prefetcher, float16 with a GradScaler."""

import torch

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.trainers.loop import over
from tests.benchmarks.loaders import timm_loader


def start(task: Task) -> Feed:
    return over(timm_loader.start(task), task, dtype=torch.float16, channels_last=True)


if __name__ == "__main__":
    enter(start)
