"""Requests to images on the device, whichever way: all on the GPU, or on the CPU, from encoded or from raw pixels.

On a GPU, DALI does everything. On a CPU, DALI decodes the windows (raw pixels need none of it) and torch does the rest,
5 times as fast as DALI would there. Both give the same pixels within a level of 255, but for borders and overshoots
(`cpu`) and for what two JPEG decoders make of a file (tests/device/test_device.py).
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from pipeline.data.decoding import dali
from pipeline.data.decoding.cpu import images_on_cpu, renderings_on_cpu
from pipeline.data.rendering import Rendering
from pipeline.data.request import Request


def decode(
    requests: Iterator[Request],
    *,
    decoder: dali.Decoder,
    px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    antialias: bool,
    device: torch.device,
    on_gpu: bool,
    threads: int,
    prefetch: int,
    bad: dali.Bad,
) -> Generator[tuple[Request, torch.Tensor], None, None]:
    """Yield each request with its float32 images [n, 3, px, px] on `device`, in channels_last memory.

    All requests have the same number of rows; `prefetch` of them are worked on ahead. Rows that could not be decoded
    come back grey and not valid, after `bad` was told of their ids and the reasons. Images stay valid as long as the
    caller holds them.
    """
    how: dict = {"px": px, "mean": mean, "std": std, "interpolation": interpolation, "antialias": antialias}
    how |= {"threads": threads, "prefetch": prefetch}
    if on_gpu:
        yield from dali.images_on_gpu(requests, decoder=decoder, device=device, bad=bad, **how)
        return
    cut = _cut(requests, decoder, threads, prefetch, bad)
    yield from _moved(images_on_cpu(cut, pinned=device.type == "cuda", **how), device)


def render(
    requests: Iterator[Request],
    *,
    decoder: dali.Decoder,
    renderings: Sequence[Rendering],
    device: torch.device,
    on_gpu: bool,
    threads: int,
    prefetch: int,
    bad: dali.Bad,
) -> Generator[tuple[Request, list[list[torch.Tensor]]], None, None]:
    """Yield each request, of whole images, with the uint8 images [height, width, 3] of its rows in each of
    `renderings`, on `device`; for the rest as `decode`. Images are valid until the caller asks for the next."""
    how: dict = {"renderings": renderings, "threads": threads, "prefetch": prefetch}
    if on_gpu:
        yield from dali.renderings_on_gpu(requests, decoder=decoder, device=device, bad=bad, **how)
        return
    for request, images in renderings_on_cpu(_cut(requests, decoder, threads, prefetch, bad), **how):
        yield request, [[image.to(device) for image in of_one] for of_one in images]


def _moved(
    pairs: Iterator[tuple[Request, torch.Tensor]], device: torch.device
) -> Iterator[tuple[Request, torch.Tensor]]:
    """Images on `device`. To a GPU they are copied while the CPU goes on; their memory is held until that is done."""
    on_the_way: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
    for request, images in pairs:
        moved = images.to(device, non_blocking=True)
        if device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(device))
            on_the_way.append((images, done))
            while on_the_way and on_the_way[0][1].query():
                on_the_way.popleft()
        del images
        yield request, moved


def _cut(
    requests: Iterator[Request], decoder: dali.Decoder, threads: int, prefetch: int, bad: dali.Bad
) -> Iterator[tuple[Request, list[np.ndarray]]]:
    """Requests with their uint8 windows."""
    if decoder.is_raw:
        return ((request, request.cut()) for request in requests)
    return dali.windows_on_cpu(requests, decoder=decoder, threads=threads, prefetch=prefetch, bad=bad)
