"""The last step on a CPU: uint8 windows to what the network sees, on a few threads of torch.

In: requests with their windows. Out, for training: float32 images [n, 3, px, px] in channels_last memory, resized,
flipped, colour-shifted, minus the mean, by the deviation. Out, for evaluation: whole images at the wanted scales,
uint8. Pixels equal PIL's as `rendering.resize` says. On a GPU, DALI does the same within one level of 255, but for the
one or two outermost rows and columns, where an antialiased filter sees the border repeated (up to 23 levels on photos),
and for bicubic's overshoots, which it cuts off once, not after each pass (up to 12).
"""

import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from pipeline.data.rendering import Rendering, resize
from pipeline.data.request import Request

CHUNK = 8  # images a task

# Shards are mapped for reading alone, of which torch warns.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def images_on_cpu(
    cut: Iterator[tuple[Request, list[np.ndarray]]],
    *,
    px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    antialias: bool,
    threads: int,
    prefetch: int,
    pinned: bool = False,
) -> Iterator[tuple[Request, torch.Tensor]]:
    """Yield each request with its images; `threads` threads work on the next `prefetch` ones meanwhile.

    Images stay valid as long as the caller holds them; `pinned` ones a GPU can copy by itself.
    """
    buffers = _Buffers(pinned)
    scale = 1 / (255 * np.asarray(std, np.float32))
    ahead: deque[tuple[Request, np.ndarray, list[Future]]] = deque()
    with _pool(threads) as pool:
        for request, windows in cut:
            images = buffers.take((len(windows), px, px, 3))
            offset = (request.windows.colour - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
            rows = [slice(start, start + CHUNK) for start in range(0, len(windows), CHUNK)]
            work = [
                pool.submit(
                    _finish,
                    windows[part],
                    images[part],
                    request.windows.flip[part],
                    scale,
                    offset[part],
                    interpolation,
                    antialias,
                )
                for part in rows
            ]
            ahead.append((request, images, work))
            if len(ahead) > prefetch:
                yield _done(*ahead.popleft())
        while ahead:
            yield _done(*ahead.popleft())


def renderings_on_cpu(
    cut: Iterator[tuple[Request, list[np.ndarray]]], *, renderings: Sequence[Rendering], threads: int, prefetch: int
) -> Iterator[tuple[Request, list[list[torch.Tensor]]]]:
    """Yield each request with the uint8 images [height, width, 3] of its rows in each of `renderings`; `threads`
    threads work on the next `prefetch` requests meanwhile.
    """

    def render(windows: list[np.ndarray]) -> list[list[torch.Tensor]]:
        return [_render(window, renderings) for window in windows]

    ahead: deque[tuple[Request, list[Future]]] = deque()
    with _pool(threads) as pool:
        for request, windows in cut:
            parts = [windows[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
            ahead.append((request, [pool.submit(render, part) for part in parts]))
            if len(ahead) > prefetch:
                yield _rendered(*ahead.popleft())
        while ahead:
            yield _rendered(*ahead.popleft())


def _render(window: np.ndarray, renderings: Sequence[Rendering]) -> list[torch.Tensor]:
    pixels, sides = torch.from_numpy(window), np.array([window.shape[:2]])
    sizes = [wanted.sizes(sides[:, 0], sides[:, 1])[0].tolist() for wanted in renderings]
    return [
        resize(pixels, height, width, wanted.interpolation, wanted.antialias)
        for (height, width), wanted in zip(sizes, renderings, strict=True)
    ]


def _rendered(request: Request, work: list[Future]) -> tuple[Request, list[list[torch.Tensor]]]:
    rows = [row for future in work for row in future.result()]
    return request, [list(images) for images in zip(*rows, strict=True)]


def _done(request: Request, images: np.ndarray, work: list[Future]) -> tuple[Request, torch.Tensor]:
    for future in work:
        future.result()
    return request, torch.from_numpy(images).permute(0, 3, 1, 2)


def _finish(
    windows: list[np.ndarray],
    images: np.ndarray,
    flip: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    interpolation: str,
    antialias: bool,
) -> None:
    """Write the images of some windows: pixel * scale + offset, scale [3] the same for all, offset [n, 3]."""
    px = images.shape[1]
    scales = torch.from_numpy(np.tile(scale, px))
    for number, window in enumerate(windows):
        pixels = resize(torch.from_numpy(window), px, px, interpolation, antialias)
        if flip[number]:
            pixels = pixels.flip(1)
        # Whole rows, since along three colours alone nothing is fast. A tensor made in this thread, since one made in
        # another's inference mode could not be written to here.
        rows = torch.from_numpy(images[number].reshape(px, px * 3))
        rows.copy_(pixels.reshape(px, px * 3))
        torch.addcmul(torch.from_numpy(offset[number]).repeat(px), rows, scales, out=rows)


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch does not start threads of its own for every image."""
    of_others, all_there = torch.get_num_threads(), Barrier(threads)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(lambda _: all_there.wait(), range(threads)))
    torch.set_num_threads(of_others)
    return pool


class _Buffers:
    """Memory for batches, taken again when nobody holds the batch that was in it.

    Fresh memory costs more than all the work above: the kernel clears each of its pages (BENCHMARKS.md).
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == 3:  # the list's, the loop's, the call's
                return array
        self._arrays.append(torch.empty(shape, pin_memory=self._pinned).numpy())
        return self._arrays[-1]
