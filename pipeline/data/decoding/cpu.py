"""The last step on a CPU: uint8 windows to the outputs asked for, on a few threads of torch.

In: requests with their windows. Out: each of the outputs: windows resized and laid onto the fill; if the output is
normal, flipped, colour-shifted, minus the mean, by the deviation. Pixels equal PIL's as `output.resize` says. On a GPU,
DALI does the same within one level of 255, but for the one or two outermost rows and columns, where an antialiased
filter sees the border repeated (up to 23 levels on photos), and for bicubic's overshoots, which it cuts off once, not
after each pass (up to 12).
"""

import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import torch

from pipeline.data.output import Output, resize
from pipeline.data.request import Request

CHUNK = 8  # images a task

# Shards are mapped for reading alone, of which torch warns.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def outputs_on_cpu(
    cut: Iterator[tuple[Request, list[np.ndarray]]],
    *,
    outputs: Sequence[Output],
    threads: int,
    prefetch: int,
    pinned: bool = False,
) -> Iterator[tuple[Request, list[Any]]]:
    """Yield each request with its images in each of `outputs` (see `Output`); `threads` threads work on the next
    `prefetch` requests meanwhile.

    Images stay valid as long as the caller holds them; `pinned` normal ones a GPU can copy by itself.
    """
    buffers = _Buffers(pinned)
    ahead: deque[tuple[Request, list[_Batch], list[Future]]] = deque()
    with _pool(threads) as pool:
        for request, windows in cut:
            batches = [_Batch(output, request, buffers) for output in outputs]
            starts = range(0, len(windows), CHUNK)
            work = [pool.submit(_make, batches, start, windows[start : start + CHUNK]) for start in starts]
            ahead.append((request, batches, work))
            if len(ahead) > prefetch:
                yield _made(*ahead.popleft())
        while ahead:
            yield _made(*ahead.popleft())


class _Batch:
    """The images of a request in one output, while they are made."""

    def __init__(self, output: Output, request: Request, buffers: "_Buffers"):
        self.output = output
        self.sizes, self.inside = (of.tolist() for of in output.layout(request.windows, request.beyond))
        self.images: Any = [None] * len(request.ids)
        if output.normal:
            mean, std = (np.asarray(of, np.float32) for of in output.normal)
            self.images = buffers.take((len(request.ids), output.px, output.px, 3))
            self.flip = request.windows.flip
            self.scale, self.offset = 1 / (255 * std), (request.windows.colour - mean) / std

    def make(self, start: int, windows: list[np.ndarray]) -> None:
        """Of the rows from `start` on."""
        normal = self.output.normal
        scales = torch.from_numpy(np.tile(self.scale, self.output.px)) if normal else None
        for row, window in enumerate(windows, start):
            pixels = self._placed(row, window)
            if scales is None:
                self.images[row] = pixels
            else:
                self._normalise(row, pixels, scales)

    def _placed(self, row: int, window: np.ndarray) -> torch.Tensor:
        """uint8 [height, width, 3]."""
        top, left, height, width = self.inside[row]
        pixels = resize(torch.from_numpy(window), height, width, self.output.interpolation, self.output.antialias)
        if self.sizes[row] == [height, width]:
            return pixels
        whole = torch.tensor(self.output.fill, dtype=torch.uint8).expand(*self.sizes[row], 3).clone()
        whole[top : top + height, left : left + width] = pixels
        return whole

    def _normalise(self, row: int, pixels: torch.Tensor, scales: torch.Tensor) -> None:
        """Into its place: pixel * scale + offset, scale [3] the same for all rows."""
        px = self.output.px
        if self.flip[row]:
            pixels = pixels.flip(1)
        # Whole rows, since along three colours alone nothing is fast. A tensor made in this thread, since one made in
        # another's inference mode could not be written to here.
        rows = torch.from_numpy(self.images[row].reshape(px, px * 3))
        rows.copy_(pixels.reshape(px, px * 3))
        torch.addcmul(torch.from_numpy(self.offset[row]).repeat(px), rows, scales, out=rows)

    def done(self) -> Any:
        return torch.from_numpy(self.images).permute(0, 3, 1, 2) if self.output.normal else self.images


def _make(batches: list[_Batch], start: int, windows: list[np.ndarray]) -> None:
    for batch in batches:
        batch.make(start, windows)


def _made(request: Request, batches: list[_Batch], work: list[Future]) -> tuple[Request, list[Any]]:
    for future in work:
        future.result()
    return request, [batch.done() for batch in batches]


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
