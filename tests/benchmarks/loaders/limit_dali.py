"""The limit of DALI's decoder: the windows that ours would cut, decoded by N threads, from memory, and nothing else."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.contest import AREA, ASPECT, BATCH, SEED, Entry, enter
from tests.benchmarks.loaders.limit import AHEAD, batches_of, photos


def start(folder: Path, cores: int) -> Entry:
    from nvidia import dali
    from nvidia.dali import fn, pipeline_def, types
    from PIL import Image

    from pipeline.data.windows import inception

    encoded = photos(folder)
    widths, heights = np.array([Image.open(io.BytesIO(photo)).size for photo in encoded]).T
    views = [np.frombuffer(photo, np.uint8) for photo in encoded]

    options: dict[str, Any] = {"device_id": None}  # its types do not know None: no GPU

    @pipeline_def(batch_size=BATCH, num_threads=cores, prefetch_queue_depth=AHEAD, seed=SEED, **options)
    def graph():
        return fn.decoders.image_slice(
            fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True),
            fn.external_source(name="start", dtype=types.INT32, ndim=1),
            fn.external_source(name="shape", dtype=types.INT32, ndim=1),
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            output_type=types.RGB,
            adjust_orientation=False,
        )

    pipe = graph()
    pipe.build()

    def feed(epoch: int, numbers: np.ndarray) -> None:
        seen = inception(heights[numbers], widths[numbers], numbers, SEED, epoch, area=AREA, aspect=ASPECT)
        pipe.feed_input("encoded", [views[number] for number in numbers])
        pipe.feed_input("start", np.stack([seen.top, seen.left], axis=1))
        pipe.feed_input("shape", np.stack([seen.height, seen.width], axis=1))

    def batches() -> Iterator[None]:
        for count, numbers in enumerate(batches_of(len(encoded)), start=1):
            feed(count, numbers)
            if count == AHEAD:
                pipe.schedule_run()  # the first call runs as many times as were fed
            if count > AHEAD:
                pipe.schedule_run()
            if count >= AHEAD:
                pipe.share_outputs()
                pipe.release_outputs()
                yield None

    return Entry(batches(), AHEAD + 1, f"DALI {dali.__version__}", makes_batches=False)


if __name__ == "__main__":
    enter(start)
