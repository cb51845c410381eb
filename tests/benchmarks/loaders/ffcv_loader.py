"""FFCV over a .beton file, JPEG or raw, in FFCV's own Python: crop, flip and normalisation compiled, RANDOM order, the
file in the operating system's cache. NormalizeImage runs on all threads; the permuted view is not copied."""

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, SEED, STD, Feed, Task, enter, epoch_of, versions

AHEAD = 3  # FFCV's default


def start(task: Task) -> Feed:
    import numpy as np
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    loader = Loader(
        str(task.folder),
        batch_size=task.batch,
        num_workers=task.cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        batches_ahead=AHEAD,
        seed=SEED,
        indices=epoch_of(list(range(Reader(str(task.folder)).num_samples))),
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((CROP_PX, CROP_PX), AREA, ASPECT),
                RandomHorizontalFlip(),
                NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32),
                ToTensor(),
                ToTorchImage(),
            ],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    images = (images for _ in iter(int, 1) for images, _ in loader)
    return Feed(images, AHEAD + 2, versions("ffcv", "numba"))


if __name__ == "__main__":
    enter(start)
