"""FFCV's ImageNet example with the network exchanged: float16 with a GradScaler, channels_last. On a GPU the example
also normalises there, with CuPy; here the CPU's threads do."""

import torch

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.trainers.loop import over
from tests.benchmarks.loaders import ffcv_loader


def start(task: Task) -> Feed:
    return over(ffcv_loader.start(task), task, dtype=torch.float16, channels_last=True)


if __name__ == "__main__":
    enter(start)
