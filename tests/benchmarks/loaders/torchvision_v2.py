"""torchvision's newer way: decode_image to a uint8 tensor, v2 transforms, DataLoader processes."""

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, STD, Feed, Task, enter, epoch_of, versions

PREFETCH = 2  # batches a worker


def start(task: Task) -> Feed:
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(CROP_PX, scale=AREA, ratio=ASPECT, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def decode(path: str) -> torch.Tensor:
        return decode_image(path, mode=ImageReadMode.RGB)

    photos = ImageFolder(str(task.folder), transform, loader=decode)
    photos.samples = epoch_of(photos.samples)
    loader = DataLoader(
        photos,
        task.batch,
        shuffle=True,
        num_workers=task.cores,
        prefetch_factor=PREFETCH,
        persistent_workers=True,
        drop_last=True,
        pin_memory=task.on_gpu,
    )
    images = (images for _ in iter(int, 1) for images, _ in loader)
    return Feed(images, task.cores * PREFETCH + 1, versions("torchvision", "torch"))


if __name__ == "__main__":
    enter(start)
