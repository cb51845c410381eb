"""torchvision as its references have it: ImageFolder, PIL, RandomResizedCrop, DataLoader processes."""

from pathlib import Path

from tests.benchmarks.contest import AREA, ASPECT, BATCH, CROP_PX, MEAN, STD, Entry, enter, epoch_of, versions

PREFETCH = 2  # batches a worker


def start(folder: Path, cores: int) -> Entry:
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
    photos = ImageFolder(str(folder), transform)
    photos.samples = epoch_of(photos.samples)
    loader = DataLoader(
        photos,
        BATCH,
        shuffle=True,
        num_workers=cores,
        prefetch_factor=PREFETCH,
        persistent_workers=True,
        drop_last=True,
    )
    images = (images for _ in iter(int, 1) for images, _ in loader)
    return Entry(images, cores * PREFETCH + 1, versions("torchvision", "torch", "pillow"))


if __name__ == "__main__":
    enter(start)
