"""webdataset as its documentation has it: shards drawn anew without end, a shuffle buffer, PIL, torchvision's
transforms, batches made in the workers, WebLoader."""

from pathlib import Path

from tests.benchmarks.contest import AREA, ASPECT, BATCH, CROP_PX, MEAN, SEED, STD, Entry, enter, versions

PREFETCH = 2  # batches a worker
SHUFFLE = 1000


def start(folder: Path, cores: int) -> Entry:
    import webdataset
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP_PX, scale=AREA, ratio=ASPECT),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    photos = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=False, seed=SEED)
        .shuffle(SHUFFLE)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png;webp", "cls")
        .map_tuple(transform)
        .batched(BATCH, partial=False)
    )
    loader = webdataset.WebLoader(photos, batch_size=None, num_workers=cores, prefetch_factor=PREFETCH)
    images = (images for images, _ in loader)
    return Entry(images, cores * PREFETCH + 1, versions("webdataset", "torchvision"))


if __name__ == "__main__":
    enter(start)
