"""The limit of the step: ours, on one batch that stays on the device. Nothing is read, decoded or copied."""

from itertools import repeat

import numpy as np
import torch

from pipeline.bench.contestant import CROP_PX, SEED, Feed, Task, enter
from pipeline.bench.trainers.ours import NUM_CLASSES, names, stepper_of, steps
from pipeline.data.loader import Batch


def start(task: Task) -> Feed:
    _, runtime, stepper = stepper_of(task)
    return Feed(steps(stepper, repeat(batch_on(runtime.device, task.batch))), 1, names(), makes_batches=False)


def batch_on(device: torch.device, rows: int) -> Batch:
    """Noise, in channels_last memory as the loader's images are."""
    source = torch.Generator().manual_seed(SEED)
    images = torch.randn(rows, 3, CROP_PX, CROP_PX, generator=source).to(device)
    labels = torch.randint(0, NUM_CLASSES, (rows,), generator=source).to(device)
    return Batch(
        images.contiguous(memory_format=torch.channels_last),
        labels,
        torch.ones_like(labels, dtype=torch.bool),
        np.arange(rows),
    )


if __name__ == "__main__":
    enter(start)
