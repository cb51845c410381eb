"""torchvision as its references have it: ImageFolder, PIL, RandomResizedCrop, DataLoader processes."""

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, STD, Feed, Task, enter, epoch_of, versions

PREFETCH = 2  # batches a worker


def start(task: Task) -> Feed:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP_PX, scale=AREA, ratio=ASPECT),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    photos = ImageFolder(str(task.folder), transform)
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
    return Feed(images, task.cores * PREFETCH + 1, versions("torchvision", "torch", "pillow"))


if __name__ == "__main__":
    enter(start)
