"""Requests to images on the device, whichever way: all on the GPU, or on the CPU, from encoded or from raw pixels.

On a GPU, DALI does everything. On a CPU, DALI decodes the windows (raw pixels need none of it) and torch does the rest,
5 times as fast as DALI would there. Both give the same pixels within a level of 255, but for borders and overshoots
(`cpu`) and for what two JPEG decoders make of a file (tests/device/test_device.py).
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.decoding import dali
from pipeline.data.decoding.cpu import outputs_on_cpu
from pipeline.data.decoding.safe import Bad
from pipeline.data.output import Output
from pipeline.data.request import Request


class Workers(NamedTuple):
    """Who decodes: `device` is where images are wanted, `on_gpu` whether DALI decodes there; `threads` of the CPU; and
    how many requests are worked on ahead."""

    device: torch.device
    on_gpu: bool
    threads: int
    prefetch: int


def decode(
    requests: Iterator[Request], decoder: dali.Decoder, outputs: Sequence[Output], workers: Workers, bad: Bad
) -> Generator[tuple[Request, list[Any]], None, None]:
    """Yield each request with its images in each of `outputs`, on the device: float32 [n, 3, px, px] in channels_last
    memory if the output is normal, else a list of n uint8 [height, width, 3]. Each image is decoded once.

    All requests have the same number of rows. Rows that could not be decoded come back grey and not valid, after `bad`
    was told of their ids and the reasons. Normal images stay valid as long as the caller holds them, others until the
    caller asks for the next.
    """
    ahead = {"threads": workers.threads, "prefetch": workers.prefetch}
    if workers.on_gpu:
        yield from dali.outputs_on_gpu(
            requests, decoder=decoder, outputs=outputs, device=workers.device, bad=bad, **ahead
        )
        return
    pinned = workers.device.type == "cuda"
    yield from _moved(
        outputs_on_cpu(_cut(requests, decoder, ahead, bad), outputs=outputs, pinned=pinned, **ahead), workers.device
    )


def _cut(
    requests: Iterator[Request], decoder: dali.Decoder, ahead: dict[str, int], bad: Bad
) -> Iterator[tuple[Request, list[np.ndarray]]]:
    """Requests with their uint8 windows."""
    if decoder.is_raw:
        return ((request, request.cut()) for request in requests)
    return dali.windows_on_cpu(requests, decoder=decoder, bad=bad, **ahead)


def _moved(pairs: Iterator[tuple[Request, list[Any]]], device: torch.device) -> Iterator[tuple[Request, list[Any]]]:
    """Images on `device`. To a GPU they are copied while the CPU goes on; their memory is held until that is done."""
    on_the_way: deque[tuple[list[Any], torch.cuda.Event]] = deque()
    for request, outputs in pairs:
        moved = [_to(images, device) for images in outputs]
        if device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(device))
            on_the_way.append((outputs, done))
            while on_the_way and on_the_way[0][1].query():
                on_the_way.popleft()
        del outputs
        yield request, moved


def _to(images: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    if isinstance(images, list):
        return [image.to(device, non_blocking=True) for image in images]
    return images.to(device, non_blocking=True)
