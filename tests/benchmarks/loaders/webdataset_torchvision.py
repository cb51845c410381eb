"""webdataset as its documentation has it: shards drawn anew without end, a shuffle buffer, PIL, torchvision's
transforms, batches made in the workers, WebLoader."""

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, SEED, STD, Feed, Task, enter, versions

PREFETCH = 2  # batches a worker
SHUFFLE = 1000


def start(task: Task) -> Feed:
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
    shards = [str(path) for path in sorted(task.folder.glob("*.tar"))]
    photos = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=False, seed=SEED)
        .shuffle(SHUFFLE)
        .decode("pilrgb")
        .to_tuple("jpg;jpeg;png;webp", "cls")
        .map_tuple(transform)
        .batched(task.batch, partial=False)
    )
    loader = webdataset.WebLoader(
        photos, batch_size=None, num_workers=task.cores, prefetch_factor=PREFETCH, pin_memory=task.on_gpu
    )
    images = (images for images, _ in loader)
    return Feed(images, task.cores * PREFETCH + 1, versions("webdataset", "torchvision"))


if __name__ == "__main__":
    enter(start)
