"""The DALI graph: images and windows in, pixels out. The only file that imports DALI.

In: requests. Out, on a GPU: float32 images [n, 3, px, px] in channels_last memory: only the window is decoded, resized,
flipped, colour-shifted, minus the mean, by the deviation; or, for evaluation, whole images at several scales. Out, on a
CPU: decoded windows, which `cpu.py` takes on, because DALI's resize and normalisation are 5 times as slow as torch's
there (BENCHMARKS.md). EXIF orientation is ignored, as torchvision's ImageFolder ignores it.

An image that cannot be decoded breaks a DALI graph for good. The culprits are then found one by one, and the same batch
is decoded by a new graph with Pillow's pixels in their rows, or, if Pillow refuses them too, a grey image, not valid.
Only the window counts: a torn photo may be whole where one lies. So a suspect is tried anew in each of its windows, by
itself, before it gets into a batch. It is always tried on the CPU: nvJPEG forgives what libjpeg-turbo refuses, and the
same rows are to be lost on both. Kinds of images that DALI may show otherwise than Pillow (`kinds.py`) it never sees.
"""

import ctypes
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pipeline.data.decoding.screen import Screen
from pipeline.data.rendering import Rendering
from pipeline.data.request import Request, shown


class Bad(Protocol):
    """What is known of bad images: `suspects` (bool [n]) are to be tried by themselves, `add` is told of new ones.
    `mended` gives the right bytes of an image that was damaged on its way, None if `image` is what is stored."""

    def suspects(self, ids: np.ndarray) -> np.ndarray: ...
    def mended(self, sample: int, image: np.ndarray) -> np.ndarray | None: ...
    def add(self, ids: np.ndarray, reasons: list[str]) -> None: ...


class Decoder(NamedTuple):
    """How windows come out of images. `is_raw`: they are pixels already; `whole`: the whole image is decoded first;
    `hw_load`: data.hw_decoder_load."""

    is_raw: bool
    whole: bool = False
    hw_load: float = 0.65


MOST_HELD = 2  # batches that the GPU has not finished with
SMOOTH_WINDOWS = (
    13,
    2,
)  # nvJPEG from which on windows can have smoothly enlarged colour planes; before, the CPU decodes

Build = Callable[[int, int], Any]  # rows, depth -> graph
Feed = Callable[[Any, Request], None]


def images_on_gpu(
    requests: Iterator[Request],
    *,
    decoder: Decoder,
    px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    antialias: bool,
    device: torch.device,
    threads: int,
    prefetch: int,
    bad: Bad,
) -> Iterator[tuple[Request, torch.Tensor]]:
    """Yield each request with its images on `device`; DALI works on the next `prefetch` ones meanwhile.

    All requests have the same number of rows. Images stay valid as long as the caller holds them.
    """

    def feed(graph: Any, request: Request) -> None:
        windows = request.windows
        _feed_windows(graph, request)
        graph.feed_input("flip", windows.flip.astype(np.int32))
        # (x + shift - mean) / std: a colour shift is a mean of one's own, so it costs nothing.
        graph.feed_input("mean", 255.0 * (np.asarray(mean, np.float32) - windows.colour))

    def build(rows: int, depth: int) -> Any:
        return _gpu_graph(rows, decoder, px, std, (interpolation, antialias), device.index, threads, depth)

    for request, (output,) in _held(requests, build, feed, decoder, threads, prefetch, bad, device):
        # No copy. NHWC seen as NCHW is channels_last without moving a byte.
        yield request, torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)


def renderings_on_gpu(
    requests: Iterator[Request],
    *,
    decoder: Decoder,
    renderings: Sequence[Rendering],
    device: torch.device,
    threads: int,
    prefetch: int,
    bad: Bad,
) -> Iterator[tuple[Request, list[list[torch.Tensor]]]]:
    """Yield each request with the uint8 images [height, width, 3] of its rows in each of `renderings`, on `device`.

    Images are decoded once, and stay valid until the caller asks for the next.
    """

    def feed(graph: Any, request: Request) -> None:
        _feed_windows(graph, request)
        for number, wanted in enumerate(renderings):
            sizes = wanted.sizes(request.windows.height, request.windows.width)
            graph.feed_input(f"size{number}", sizes.astype(np.float32))

    def build(rows: int, depth: int) -> Any:
        return _renderings_graph(rows, decoder, renderings, device.index, threads, depth)

    for request, outputs in _held(requests, build, feed, decoder, threads, prefetch, bad, device):
        rows = range(len(request.ids))
        wanted = outputs[: len(renderings)]  # not the images of a graph that has no rendering
        yield request, [[torch.from_dlpack(output[row]) for row in rows] for output in wanted]


def _held(
    requests: Iterator[Request],
    build: Build,
    feed: Feed,
    decoder: Decoder,
    threads: int,
    prefetch: int,
    bad: Bad,
    device: torch.device,
) -> Iterator[tuple[Request, tuple[Any, ...]]]:
    """What `_run` yields, kept from being written again until the GPU has done what the caller asked of it.

    The default executor leaves a released buffer alone while someone holds it. When the caller lets go of it, kernels
    that read it may be waiting yet. A process that runs ahead of its GPU waits here, so that no more than MOST_HELD
    batches are kept.
    """

    def stream() -> Any:
        return torch.cuda.current_stream(device)

    in_use: deque[tuple[Any, torch.cuda.Event]] = deque()
    screen = Screen(torn=True)
    for request, outputs in _run(requests, build, feed, decoder, threads, prefetch, bad, screen, stream):
        yield request, outputs
        done = torch.cuda.Event()
        done.record(stream())
        in_use.append((outputs, done))
        _release(in_use)


def _release(in_use: deque[tuple[Any, Any]]) -> None:
    """Let go of batches whose event has come, and wait for the oldest while there are more than MOST_HELD."""
    while len(in_use) > MOST_HELD:
        in_use.popleft()[1].synchronize()
    while in_use and in_use[0][1].query():
        in_use.popleft()


def windows_on_cpu(
    requests: Iterator[Request], *, decoder: Decoder, threads: int, prefetch: int, bad: Bad
) -> Iterator[tuple[Request, list[np.ndarray]]]:
    """Yield each request with its decoded windows, uint8 [height, width, 3] each, valid while the caller holds them."""

    def build(rows: int, depth: int) -> Any:
        return _cpu_graph(rows, decoder, threads, depth)

    screen = Screen(torn=False)
    for request, (windows,) in _run(requests, build, _feed_windows, decoder, threads, prefetch, bad, screen):
        yield request, [np.asarray(windows[row]) for row in range(len(request.ids))]


def _run(
    requests: Iterator[Request],
    build: Build,
    feed: Feed,
    decoder: Decoder,
    threads: int,
    prefetch: int,
    bad: Bad,
    screen: Screen,
    stream: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[Request, tuple[Any, ...]]]:
    """Keep `prefetch` requests going in a graph, and a whole graph under them. Yields requests with its outputs."""
    safe = _Safe(decoder, screen, bad, threads)
    with closing(safe):
        yield from _runs(map(safe.prepared, requests), build, feed, safe, prefetch, stream)


def _runs(
    requests: Iterator[Request], build: Build, feed: Feed, safe: "_Safe", prefetch: int, stream: Callable[[], Any]
) -> Iterator[tuple[Request, tuple[Any, ...]]]:
    waiting = deque(_take(requests, prefetch))  # holds the buffers that DALI reads without copying them
    graph = None
    while waiting:
        if graph is None:
            graph = build(len(waiting[0].ids), len(waiting))
            for request in waiting:
                feed(graph, request)
            graph.schedule_run()  # the first call runs as many times as were fed
        try:
            outputs = graph.share_outputs(cuda_stream=stream())
        except RuntimeError:
            graph = None
            mended = safe.tried(waiting[0], np.ones(len(waiting[0].ids), bool))
            if mended is waiting[0]:  # every image can be decoded, so it was something else
                raise
            waiting[0] = mended
            continue
        graph.release_outputs()
        done = waiting.popleft()
        for request in _take(requests, 1):
            feed(graph, request)
            waiting.append(request)
            graph.schedule_run()
        yield done, tuple(outputs)


def _take(requests: Iterator[Request], number: int) -> list[Request]:
    return [request for _, request in zip(range(number), requests, strict=False)]


class _Safe:
    """Requests that a graph survives: rows that it cannot decode hold Pillow's pixels, or a grey image."""

    def __init__(self, decoder: Decoder, screen: Screen, bad: Bad, threads: int):
        self.decoder = decoder
        self.screen = screen
        self.bad = bad
        self._pool = ThreadPoolExecutor(threads)  # starts none before it has work
        self._probe = _Probe(decoder)

    def prepared(self, request: Request) -> Request:
        """The request with the images that Pillow decodes, and the suspects tried by themselves."""
        doubtful = self.bad.suspects(shown(request.ids))
        if self.decoder.is_raw:
            return self.tried(request, doubtful)
        others = self.screen.others(request)
        doubtful |= self.screen.suspects(request)
        return self.tried(self._shown_by_pillow(request, np.flatnonzero(others).tolist(), {}), doubtful & ~others)

    def tried(self, request: Request, doubtful: np.ndarray) -> Request:
        """The request itself if the graph can decode all of its `doubtful` rows (bool [n])."""
        tried = np.flatnonzero(doubtful & _wanted(request)).tolist()
        failures = {row: failure for row in tried if (failure := self._probe.failure(request.row(row)))}
        if failures:
            self.screen.doubt(request.ids[list(failures)])
        return self._shown_by_pillow(request, list(failures), failures)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _shown_by_pillow(self, request: Request, rows: list[int], failures: dict[int, RuntimeError]) -> Request:
        """With Pillow's pixels in `rows`; those that it cannot decode either are left out, and `bad.add` is told.

        `failures` are DALI's. Raises such a one if there was no memory, which is no fault of an image's.
        """
        rows = [row for row in rows if _wanted(request)[row]]
        pictures = list(self._pool.map(request.shown_by_pillow, rows))
        reasons = {row: reason for row, reason in zip(rows, pictures, strict=True) if isinstance(reason, str)}
        for row, reason in reasons.items():
            failure = failures.get(row, RuntimeError(f"decoding an image with Pillow: {reason}"))
            if _lacks_memory(f"{reason} {failure}") or (row in failures and not self._probe.works(request, row)):
                raise failure  # no fault of the image's, which would be left out for good
        refused, ids = dict.fromkeys([*failures, *reasons]), shown(request.ids).tolist()
        right = {row: image for row in refused if (image := self.bad.mended(ids[row], request.images[row])) is not None}
        if right:
            self.screen.forget(request.ids[list(right)])
            whole = [right.get(row, image) for row, image in enumerate(request.images)]
            return self.prepared(replace(request, images=whole))
        images = {row: image for row, image in zip(rows, pictures, strict=True) if not isinstance(image, str)}
        if images:
            request = request.with_images(images)
        if not reasons:
            return request
        self.bad.add(shown(request.ids[list(reasons)]), list(reasons.values()))
        return request.without(np.isin(np.arange(len(request.ids)), list(reasons)))


def _wanted(request: Request) -> np.ndarray:
    """Rows that are no stand-ins: bool [n]."""
    return request.valid | (request.ids < 0)


def _lacks_memory(text: str) -> bool:
    return any(word in text.lower() for word in ("memory", "alloc"))


class _Probe:
    """Tries images one by one, in a graph of one row on the CPU, whose verdict counts on a GPU too."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.graph: Any = None

    def failure(self, one: Request) -> RuntimeError | None:
        """What DALI says against the window of a request of one row."""
        self.graph = self.graph or _cpu_graph(1, self.decoder, threads=1, depth=1)
        try:
            _feed_windows(self.graph, one)
            self.graph.run()
        except RuntimeError as failure:
            self.graph = None
            return failure
        return None

    def works(self, request: Request, row: int) -> bool:
        """Whether a sound image can be decoded, now."""
        return self.failure(request.row(row).without(np.ones(1, bool))) is None


def _feed_windows(graph: Any, request: Request) -> None:
    windows = request.windows
    graph.feed_input("images", request.images)
    graph.feed_input("start", np.stack([windows.top, windows.left], axis=1))
    graph.feed_input("shape", np.stack([windows.height, windows.width], axis=1))


def _windows(decoder: Decoder, device: str) -> Any:
    """The node of uint8 windows, decoded or cut, as `_feed_windows` feeds them."""
    from nvidia.dali import fn
    from nvidia.dali import types as dali_types

    types: Any = dali_types
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    pixels: Any = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}
    if decoder.is_raw:
        rows = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
        return fn.slice(rows.gpu() if device == "mixed" else rows, start, shape, **pixels)
    encoded = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
    how: Any = {"device": device, "output_type": types.RGB, "adjust_orientation": False}
    if device == "mixed":
        # Colour planes are enlarged as libjpeg-turbo, and so Pillow and the CPU path, do it.
        smooth = decoder.whole or nvjpeg_version() >= SMOOTH_WINDOWS
        how |= {"hw_decoder_load": decoder.hw_load, "jpeg_fancy_upsampling": smooth}
    if decoder.whole:
        return fn.slice(fn.decoders.image(encoded, **how), start, shape, **pixels)
    return fn.decoders.image_slice(encoded, start, shape, **pixels, **how)


@cache
def nvjpeg_version() -> tuple[int, int]:
    """Of the library that decodes on the GPU: the one that pip installed, loaded here before DALI would take another
    that LD_LIBRARY_PATH names. (0, 0) if there is none. Warns if it is too old to decode windows as the CPU does."""
    import nvidia

    file = f"libnvjpeg.so.{(torch.version.cuda or '13').partition('.')[0]}"  # of the CUDA version that DALI is for too
    installed = [str(found) for folder in nvidia.__path__ for found in Path(folder).glob(f"*/lib/{file}")]
    for name in (*installed, file):
        try:
            library = ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        part = ctypes.c_int()
        found = []
        for number in range(2):  # MAJOR_VERSION, MINOR_VERSION of libraryPropertyType
            library.nvjpegGetProperty(number, ctypes.byref(part))
            found.append(part.value)
        break
    else:
        found = [0, 0]
    version = found[0], found[1]
    if version < SMOOTH_WINDOWS:
        warnings.warn(
            f"nvJPEG {version[0]}.{version[1]} cannot enlarge the colour planes of windows as Pillow does, so pixels "
            f"decoded on this GPU differ a little more from a CPU's. With CUDA 13, pip install 'nvidia-nvjpeg>=13.3'",
            stacklevel=2,
        )
    return version


def _cpu_graph(rows: int, decoder: Decoder, threads: int, depth: int) -> Any:
    from nvidia.dali import pipeline_def

    options: dict[str, Any] = {"device_id": None}  # None, which its types do not know, means no GPU

    @pipeline_def(batch_size=rows, num_threads=threads, prefetch_queue_depth=depth, seed=0, **options)
    def graph():
        return _windows(decoder, device="cpu")

    return _built(graph)


def _gpu_graph(
    rows: int,
    decoder: Decoder,
    px: int,
    std: tuple[float, float, float],
    filter: tuple[str, bool],
    gpu: int | None,
    threads: int,
    depth: int,
) -> Any:
    """On the CPU if `gpu` is None, which tests use."""
    from nvidia.dali import fn, pipeline_def, types

    options: dict[str, Any] = {"device_id": gpu}

    @pipeline_def(batch_size=rows, num_threads=threads, prefetch_queue_depth=depth, seed=0, **options)
    def graph():
        images = _windows(decoder, device="cpu" if gpu is None else "mixed")
        images = fn.resize(images, size=[px, px], **_filter(*filter))
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.external_source(name="flip", dtype=types.INT32, ndim=0),
            mean=fn.external_source(name="mean", dtype=types.FLOAT, ndim=1),
            std=[255.0 * value for value in std],
            dtype=types.FLOAT,
            output_layout="HWC",
        )

    return _built(graph)


def _renderings_graph(
    rows: int, decoder: Decoder, renderings: Sequence[Rendering], gpu: int | None, threads: int, depth: int
) -> Any:
    """On the CPU if `gpu` is None, which tests use. Without renderings images are only decoded."""
    from nvidia.dali import fn, pipeline_def, types

    options: dict[str, Any] = {"device_id": gpu}

    @pipeline_def(batch_size=rows, num_threads=threads, prefetch_queue_depth=depth, seed=0, **options)
    def graph():
        images = _windows(decoder, device="cpu" if gpu is None else "mixed")
        if not renderings:
            return (images,)  # a graph must have an output
        sizes = [fn.external_source(name=f"size{n}", dtype=types.FLOAT, ndim=1) for n in range(len(renderings))]
        return tuple(
            fn.resize(images, size=size, **_filter(wanted.interpolation, wanted.antialias))
            for size, wanted in zip(sizes, renderings, strict=True)
        )

    return _built(graph)


def _filter(interpolation: str, antialias: bool) -> dict[str, Any]:
    from nvidia.dali import types as dali_types

    types: Any = dali_types
    kinds = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    return {"interp_type": kinds[interpolation], "antialias": antialias}


def _built(graph: Callable[[], Any]) -> Any:
    pipe = graph()
    pipe.build()
    return pipe
