"""DALI alone, as NVIDIA's examples have it: its WebDataset reader, its random crop, everything inside the graph.

The outputs are handed to torch without the copy that DALIGenericIterator makes. The reader makes the tars' index
itself, once, at the start.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.bench.contestant import AREA, ASPECT, CROP_PX, MEAN, SEED, STD, Feed, Task, enter

PREFETCH = 2


def start(task: Task) -> Feed:
    import torch
    from nvidia import dali
    from nvidia.dali import fn, pipeline_def, types

    options: dict[str, Any] = {"device_id": 0 if task.on_gpu else None}  # its types do not know None: no GPU

    @pipeline_def(batch_size=task.batch, num_threads=task.cores, prefetch_queue_depth=PREFETCH, seed=SEED, **options)
    def graph():
        encoded, labels = fn.readers.webdataset(
            paths=[str(path) for path in sorted(task.folder.glob("*.tar"))],
            ext=["jpg;jpeg;png;webp", "cls"],
            random_shuffle=True,
            initial_fill=1000,
            name="reader",
        )
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if task.on_gpu else "cpu",
            random_area=list(AREA),
            random_aspect_ratio=list(ASPECT),
            output_type=types.RGB,
            adjust_orientation=False,
        )
        images = fn.resize(images, size=[CROP_PX, CROP_PX], interp_type=types.INTERP_TRIANGULAR)
        images = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="HWC",
        )
        return images, labels

    pipe = graph()
    pipe.build()

    def batches() -> Iterator[torch.Tensor]:
        while True:
            images, _ = pipe.run()
            yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)

    return Feed(batches(), PREFETCH + 1, f"DALI {dali.__version__}")


if __name__ == "__main__":
    enter(start)
