"""The DALI graph: encoded bytes and windows in, normalised images on the device out. The only file that imports DALI.

In: requests (encoded images, windows). Out: float32 images [n, 3, px, px] in channels_last memory, on the CPU or GPU:
decode only the window, resize it with an antialiased triangular filter, flip, shift colours, subtract the mean, divide
by the deviation. Pixels equal PIL's antialiased BILINEAR within one level of 255, but for the one or two outermost rows
and columns, where DALI repeats the border and PIL leaves it out (up to 10 levels on noise). EXIF orientation is
ignored, as torchvision's ImageFolder ignores it.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.windows import Windows


@dataclass(frozen=True)
class Request:
    """What one batch needs: ids and labels int64 [n] (-1 marks padding), encoded images, their windows."""

    ids: np.ndarray
    labels: np.ndarray
    encoded: list[np.ndarray]
    windows: Windows


def decode(
    requests: Iterator[Request],
    *,
    rows: int,
    px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
    on_gpu: bool,
    threads: int,
    prefetch: int,
) -> Iterator[tuple[Request, torch.Tensor]]:
    """Yield each request with its images on `device`; DALI works on the next `prefetch` ones meanwhile.

    Every request has `rows` rows. `on_gpu` says where decoding happens. Images stay valid as long as the caller holds
    them. Raises RuntimeError from DALI for an image that cannot be decoded.
    """
    waiting: deque[Request] = deque()  # holds the buffers that DALI reads without copying them
    first = _take(requests, prefetch)
    if not first:
        return
    graph = _graph(rows, px, std, device.index if on_gpu else None, threads, len(first))
    for request in first:
        _feed(graph, request, mean)
        waiting.append(request)
    graph.schedule_run()  # the first call runs as many times as were fed
    while waiting:
        (images,) = graph.share_outputs(cuda_stream=torch.cuda.current_stream() if on_gpu else None)
        # No copy: the default executor leaves a released buffer alone while someone holds it. NHWC seen as NCHW is
        # channels_last without moving a byte.
        batch = torch.from_dlpack(images.as_tensor()).to(device).permute(0, 3, 1, 2)
        graph.release_outputs()
        done = waiting.popleft()
        for request in _take(requests, 1):
            _feed(graph, request, mean)
            waiting.append(request)
            graph.schedule_run()
        yield done, batch


def _take(requests: Iterator[Request], number: int) -> list[Request]:
    return [request for _, request in zip(range(number), requests, strict=False)]


def _feed(graph, request: Request, mean: tuple[float, float, float]) -> None:
    windows = request.windows
    graph.feed_input("encoded", request.encoded)
    graph.feed_input("start", np.stack([windows.top, windows.left], axis=1))
    graph.feed_input("shape", np.stack([windows.height, windows.width], axis=1))
    graph.feed_input("flip", windows.flip.astype(np.int32))
    # (x + shift - mean) / std: a colour shift is a mean of one's own, so it costs nothing.
    graph.feed_input("mean", 255.0 * (np.asarray(mean, np.float32) - windows.colour))


def _graph(rows: int, px: int, std: tuple[float, float, float], gpu: int | None, threads: int, depth: int):
    from nvidia.dali import fn, pipeline_def, types

    options: dict[str, Any] = {"device_id": gpu}  # None, which its types do not know, means no GPU

    @pipeline_def(batch_size=rows, num_threads=threads, prefetch_queue_depth=depth, seed=0, **options)
    def graph():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
        shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
        flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
        mean = fn.external_source(name="mean", dtype=types.FLOAT, ndim=1)
        images = fn.decoders.image_slice(
            encoded,
            start,
            shape,
            device="cpu" if gpu is None else "mixed",
            axis_names="HW",
            normalized_anchor=False,
            normalized_shape=False,
            output_type=types.RGB,
            adjust_orientation=False,
        )
        images = fn.resize(images, size=[px, px], interp_type=types.INTERP_TRIANGULAR)
        return fn.crop_mirror_normalize(
            images,
            mirror=flip,
            mean=mean,
            std=[255.0 * value for value in std],
            dtype=types.FLOAT,
            output_layout="HWC",
        )

    pipe = graph()
    pipe.build()
    return pipe
