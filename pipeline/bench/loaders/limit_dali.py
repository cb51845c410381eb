"""The limit of DALI's decoder: our windows of our set decoded (of raw pixels: copied and cut), and nothing else.

Requests are made beforehand and taken again and again; the graph is that of data/decoding/dali.py without outputs.
"""

from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from pipeline.bench.contestant import Feed, Task, enter
from pipeline.bench.loaders.ours import task_of
from pipeline.data.decoding import dali as ours
from pipeline.data.decoding.safe import Safe
from pipeline.data.decoding.screen import Screen
from pipeline.data.fields import Labels
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


def start(task: Task) -> Feed:
    from nvidia import dali

    index, data, order = task_of(task)
    decoder = ours.Decoder(index.is_raw, data.decode_whole, data.hw_decoder_load)
    if index.is_raw and not task.on_gpu:
        raise ValueError("there is nothing to decode, and no GPU to copy to")
    steps = range(NUM_REQUESTS)
    source = Source(index, data, steps, lambda step: rank_part(order.batch(step), 0, 1), order.batch)
    requests = list(islice(train_requests(source, data, order, 1, Labels()), NUM_REQUESTS))
    graph = ours.Graph(decoder, gpu=0 if task.on_gpu else None, threads=task.cores)
    screen = Screen(torn=task.on_gpu)
    safe = Safe(index.is_raw, screen, NobodyBad(), task.cores, ours.probe(decoder))

    def stream() -> Any:
        return torch.cuda.current_stream() if task.on_gpu else None

    batches = ours._run(cycle(requests), graph, safe, data.prefetch, stream)
    return Feed((None for _ in batches), data.prefetch + 1, f"DALI {dali.__version__}", makes_batches=False)


if __name__ == "__main__":
    enter(start)
