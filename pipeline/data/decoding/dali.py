"""The DALI graph: images and windows in, pixels out. The only file that imports DALI.

In: requests. Out, on a GPU: each of the outputs asked for: only the window is decoded, then resized and, if the output
is normal, flipped, colour-shifted, minus the mean, by the deviation. Out, on a CPU: decoded windows, which `cpu.py`
takes on, because DALI's resize and normalisation are 5 times as slow as torch's there (BENCHMARKS.md). EXIF orientation
is ignored, as torchvision's ImageFolder ignores it.

What cannot be decoded `safe.py` keeps out. It is always tried on the CPU: nvJPEG forgives what libjpeg-turbo refuses,
and the same rows are to be lost on both. Kinds of images that DALI may show otherwise than Pillow (`kinds.py`) it never
sees.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.data.decoding.nvjpeg import SMOOTH_WINDOWS, nvjpeg_version
from pipeline.data.decoding.safe import Bad, Safe
from pipeline.data.decoding.screen import Screen
from pipeline.data.output import Output
from pipeline.data.request import Request

MOST_HELD = 2  # batches that the GPU has not finished with
PIXELS: Any = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}


class Decoder(NamedTuple):
    """How windows come out of images. `is_raw`: they are pixels already; `whole`: the whole image is decoded first;
    `hw_load`: data.hw_decoder_load."""

    is_raw: bool
    whole: bool = False
    hw_load: float = 0.65


def outputs_on_gpu(
    requests: Iterator[Request],
    *,
    decoder: Decoder,
    outputs: Sequence[Output],
    device: torch.device,
    threads: int,
    prefetch: int,
    bad: Bad,
) -> Iterator[tuple[Request, list[Any]]]:
    """Yield each request with its images on `device`, in each of `outputs` (see `Output`); DALI works on the next
    `prefetch` ones meanwhile.

    All requests have the same number of rows. A batch of normal images stays valid as long as the caller holds it,
    others until the caller asks for the next.
    """
    graph = Graph(decoder, tuple(outputs), device.index, threads)
    safe = Safe(decoder.is_raw, Screen(torn=True), bad, threads, probe(decoder))
    for request, made in _held(requests, graph, safe, prefetch, device):
        rows = range(len(request.ids))
        yield (
            request,
            [
                # No copy. NHWC seen as NCHW is channels_last without moving a byte.
                torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
                if output.normal
                else [torch.from_dlpack(images[row]) for row in rows]
                for output, images in zip(outputs, made, strict=False)  # without outputs, a graph gives its windows
            ],
        )


def windows_on_cpu(
    requests: Iterator[Request], *, decoder: Decoder, threads: int, prefetch: int, bad: Bad
) -> Iterator[tuple[Request, list[np.ndarray]]]:
    """Yield each request with its decoded windows, uint8 [height, width, 3] each, valid while the caller holds them."""
    graph = Graph(decoder, threads=threads)
    safe = Safe(decoder.is_raw, Screen(torn=False), bad, threads, probe(decoder))
    for request, (windows,) in _run(requests, graph, safe, prefetch):
        yield request, [np.asarray(windows[row]) for row in range(len(request.ids))]


def _held(
    requests: Iterator[Request], graph: "Graph", safe: Safe, prefetch: int, device: torch.device
) -> Iterator[tuple[Request, tuple[Any, ...]]]:
    """What `_run` yields, kept from being written again until the GPU has done what the caller asked of it.

    The default executor leaves a released buffer alone while someone holds it. When the caller lets go of it, kernels
    that read it may be waiting yet. A process that runs ahead of its GPU waits here, so that no more than MOST_HELD
    batches are kept.
    """

    def stream() -> Any:
        return torch.cuda.current_stream(device)

    in_use: deque[tuple[Any, torch.cuda.Event]] = deque()
    for request, made in _run(requests, graph, safe, prefetch, stream):
        yield request, made
        done = torch.cuda.Event()
        done.record(stream())
        in_use.append((made, done))
        _release(in_use)


def _release(in_use: deque[tuple[Any, Any]]) -> None:
    """Let go of batches whose event has come, and wait for the oldest while there are more than MOST_HELD."""
    while len(in_use) > MOST_HELD:
        in_use.popleft()[1].synchronize()
    while in_use and in_use[0][1].query():
        in_use.popleft()


def _run(
    requests: Iterator[Request],
    graph: "Graph",
    safe: Safe,
    prefetch: int,
    stream: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[Request, tuple[Any, ...]]]:
    """Keep `prefetch` requests going in a graph, and a whole graph under them. Yields requests with its outputs."""
    with closing(safe):
        asked = map(safe.prepared, requests)
        waiting = deque(_take(asked, prefetch))  # holds the buffers that DALI reads without copying them
        pipe = None
        while waiting:
            if pipe is None:
                pipe = graph.build(len(waiting[0].ids), len(waiting))
                for request in waiting:
                    graph.feed(pipe, request)
                pipe.schedule_run()  # the first call runs as many times as were fed
            try:
                made = pipe.share_outputs(cuda_stream=stream())
            except RuntimeError:
                pipe = None
                mended = safe.tried(waiting[0], np.ones(len(waiting[0].ids), bool))
                if mended is waiting[0]:  # every image can be decoded, so it was something else
                    raise
                waiting[0] = mended
                continue
            pipe.release_outputs()
            done = waiting.popleft()
            for request in _take(asked, 1):
                graph.feed(pipe, request)
                waiting.append(request)
                pipe.schedule_run()
            yield done, tuple(made)


def _take(requests: Iterator[Request], number: int) -> list[Request]:
    return [request for _, request in zip(range(number), requests, strict=False)]


def probe(decoder: Decoder) -> Callable[[Request], RuntimeError | None]:
    """Tries the window of a request of one row, in a graph of one row on the CPU, whose verdict counts on a GPU too:
    what DALI says against it, or None."""
    graph, pipe = Graph(decoder), None

    def failure(request: Request) -> RuntimeError | None:
        nonlocal pipe
        pipe = pipe or graph.build(rows=1, depth=1)
        try:
            graph.feed(pipe, request)
            pipe.run()
        except RuntimeError as failure:
            pipe = None
            return failure
        return None

    return failure


class Graph(NamedTuple):
    """How a graph is built, and fed with requests. It runs on the CPU if `gpu` is None; without `outputs` it decodes
    windows, and that is all."""

    decoder: Decoder
    outputs: tuple[Output, ...] = ()
    gpu: int | None = None
    threads: int = 1

    def build(self, rows: int, depth: int) -> Any:
        from nvidia.dali import pipeline_def

        options: dict[str, Any] = {"device_id": self.gpu}  # None, which its types do not know, means no GPU

        @pipeline_def(batch_size=rows, num_threads=self.threads, prefetch_queue_depth=depth, seed=0, **options)
        def graph():
            windows = self._windows()
            made = [self._output(windows, number, output) for number, output in enumerate(self.outputs)]
            return tuple(made) or (windows,)  # a graph must have an output

        pipe = graph()
        pipe.build()
        return pipe

    def feed(self, pipe: Any, request: Request) -> None:
        windows = request.windows
        pipe.feed_input("images", request.images)
        pipe.feed_input("start", np.stack([windows.top, windows.left], axis=1))
        pipe.feed_input("shape", np.stack([windows.height, windows.width], axis=1))
        for number, output in enumerate(self.outputs):
            sizes, inside = output.layout(windows, request.beyond)
            if output.fill or not output.square:
                pipe.feed_input(f"size{number}", inside[:, 2:].astype(np.float32))
            if output.fill:
                pipe.feed_input(f"corner{number}", -inside[:, :2].astype(np.int32))
                pipe.feed_input(f"whole{number}", sizes.astype(np.int32))
            if output.normal:
                pipe.feed_input(f"flip{number}", windows.flip.astype(np.int32))
                # (x + shift - mean) / std: a colour shift is a mean of one's own, so it costs nothing.
                pipe.feed_input(f"mean{number}", 255.0 * (np.asarray(output.normal.mean, np.float32) - windows.colour))

    def _windows(self) -> Any:
        """The node of uint8 windows, decoded or cut."""
        from nvidia.dali import fn
        from nvidia.dali import types as dali_types

        types: Any = dali_types
        start, shape = _input("start", types.INT32, 1), _input("shape", types.INT32, 1)
        if self.decoder.is_raw:
            rows = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
            return fn.slice(rows if self.gpu is None else rows.gpu(), start, shape, **PIXELS)
        encoded = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
        options: Any = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
        if self.gpu is not None:
            # Colour planes are enlarged as libjpeg-turbo, and so Pillow and the CPU path, do it.
            smooth = self.decoder.whole or nvjpeg_version() >= SMOOTH_WINDOWS
            options |= {"device": "mixed", "hw_decoder_load": self.decoder.hw_load, "jpeg_fancy_upsampling": smooth}
        if self.decoder.whole:
            return fn.slice(fn.decoders.image(encoded, **options), start, shape, **PIXELS)
        return fn.decoders.image_slice(encoded, start, shape, **PIXELS, **options)

    def _output(self, windows: Any, number: int, output: Output) -> Any:
        from nvidia.dali import fn
        from nvidia.dali import types as dali_types

        types: Any = dali_types
        constant = output.square and not output.fill
        images: Any = fn.resize(
            windows,
            size=[output.px, output.px] if constant else _input(f"size{number}", types.FLOAT, 1),
            interp_type={"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[output.interpolation],
            antialias=output.antialias,
        )
        if output.fill:
            corner, whole = _input(f"corner{number}", types.INT32, 1), _input(f"whole{number}", types.INT32, 1)
            outside: Any = {"out_of_bounds_policy": "pad", "fill_values": [*output.fill]}
            images = fn.slice(images, corner, whole, **PIXELS, **outside)
        if not output.normal:
            return images
        return fn.crop_mirror_normalize(
            images,
            mirror=_input(f"flip{number}", types.INT32, 0),
            mean=_input(f"mean{number}", types.FLOAT, 1),
            std=[255.0 * value for value in output.normal.std],
            dtype=types.FLOAT,
            output_layout="HWC",
        )


def _input(name: str, dtype: Any, ndim: int) -> Any:
    from nvidia.dali import fn

    return fn.external_source(name=name, dtype=dtype, ndim=ndim)
