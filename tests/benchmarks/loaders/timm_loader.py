"""timm's create_loader over class folders, in the settings of its training script for this task.

With its prefetcher, which on the CPU too was faster: the workers send uint8, and it normalises whole batches.
"""

from typing import Any

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, STD, Feed, Task, enter, epoch_of, versions

PREFETCH = 2  # batches a worker: torch's default, which timm leaves as it is


def start(task: Task) -> Feed:
    import torch
    from timm.data import create_dataset, create_loader

    photos = create_dataset("", root=str(task.folder), split="train", is_training=True, batch_size=task.batch)
    photos.reader.samples = epoch_of(photos.reader.samples)
    no_colours: dict[str, Any] = {"color_jitter": None}  # its types do not know None
    loader = create_loader(
        photos,
        input_size=(3, CROP_PX, CROP_PX),
        batch_size=task.batch,
        is_training=True,
        scale=AREA,
        ratio=ASPECT,
        hflip=0.5,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=task.cores,
        use_prefetcher=True,
        persistent_workers=True,
        device=torch.device(task.device),
        pin_memory=task.on_gpu,
        **no_colours,
    )
    images = (images for _ in iter(int, 1) for images, _ in loader)
    return Feed(images, task.cores * PREFETCH + 2, versions("timm", "torchvision"))


if __name__ == "__main__":
    enter(start)
