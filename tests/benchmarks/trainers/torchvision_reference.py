"""torchvision's references/classification/train.py with --amp: ImageFolder, DataLoader, float16 with a GradScaler."""

import torch

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.trainers.loop import over
from tests.benchmarks.loaders import torchvision_folder


def start(task: Task) -> Feed:
    return over(torchvision_folder.start(task), task, dtype=torch.float16, channels_last=False)


if __name__ == "__main__":
    enter(start)
