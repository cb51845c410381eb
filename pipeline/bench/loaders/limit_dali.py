"""The limit of DALI's decoder: our windows of our set decoded (of raw pixels: copied and cut), and nothing else.

Requests are made beforehand and taken again and again; the graph has the decoder's node of data/decoding/dali.py alone.
"""

from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from pipeline.bench.contestant import SEED, Entry, Task, enter
from pipeline.bench.loaders.ours import task_of
from pipeline.data.decoding import dali as ours
from pipeline.data.decoding.screen import Screen
from pipeline.data.loader import train_requests
from pipeline.data.order import rank_part
from pipeline.data.source import Source

NUM_REQUESTS = 32  # at most


class NobodyBad:
    """A limit has no place for bad images."""

    def suspects(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(len(ids), bool)

    def mended(self, sample: int, image: np.ndarray) -> None:
        return None

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        raise ValueError(f"{len(ids)} photos cannot be decoded: {reasons[0]}")


def start(task: Task) -> Entry:
    from nvidia import dali
    from nvidia.dali import pipeline_def

    index, data, order = task_of(task)
    decoder = ours.Decoder(index.is_raw, data.decode_whole, data.hw_decoder_load)
    if index.is_raw and not task.on_gpu:
        raise ValueError("there is nothing to decode, and no GPU to copy to")
    steps = range(NUM_REQUESTS)
    source = Source(index, data, steps, lambda step: rank_part(order.batch(step), 0, 1), order.batch)
    requests = list(islice(train_requests(source, data, order, SEED, 1), NUM_REQUESTS))
    options: dict[str, Any] = {"device_id": 0 if task.on_gpu else None}

    def build(rows: int, depth: int) -> Any:
        @pipeline_def(batch_size=rows, num_threads=task.cores, prefetch_queue_depth=depth, seed=SEED, **options)
        def graph():
            return ours._windows(decoder, "mixed" if task.on_gpu else "cpu")

        return ours._built(graph)

    def stream() -> Any:
        return torch.cuda.current_stream() if task.on_gpu else None

    screen = Screen(torn=task.on_gpu)
    batches = ours._run(
        cycle(requests), build, ours._feed_windows, decoder, task.cores, data.prefetch, NobodyBad(), screen, stream
    )
    return Entry((None for _ in batches), data.prefetch + 1, f"DALI {dali.__version__}", makes_batches=False)


if __name__ == "__main__":
    enter(start)
