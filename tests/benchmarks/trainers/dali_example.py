"""DALI's ResNet-50 example with the network exchanged: everything in DALI's graph, float16 with a GradScaler."""

import torch

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.trainers.loop import over
from tests.benchmarks.loaders import dali_reader


def start(task: Task) -> Feed:
    return over(dali_reader.start(task), task, dtype=torch.float16, channels_last=True)


if __name__ == "__main__":
    enter(start)
