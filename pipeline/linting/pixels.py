"""Every image of a shard in full, through the decoder that training uses.

In: images with their sizes. Out: their pixels, and the culprits by row. What training cannot decode is found here, and
what Pillow shows otherwise.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from pipeline.data.decoding import dali
from pipeline.data.decoding.pillow import Undecodable, pixels
from pipeline.data.geometry import Crops
from pipeline.data.request import Request

ROWS = 16  # images in one batch
BATCH_PIXELS = 24_000_000  # at most, unless one image has more: bounds a worker's memory


class Stored(NamedTuple):
    """An image as it lies in the shard: encoded, or uint8 pixels. `row` is its number in the shard."""

    row: int
    content: bytes
    height: int
    width: int


def raw_pixels(images: Iterator[Stored]) -> Iterator[tuple[int, np.ndarray, bytes]]:
    """(row, uint8 [height, width, 3], b"") of raw images."""
    for row, content, height, width in images:
        yield row, np.frombuffer(content, np.uint8).reshape(height, width, 3), b""


Tell = Callable[[np.ndarray, list[str]], None]


class Told(NamedTuple):
    """For the decoder: whom to tell of a bad image. None is suspected before it was decoded."""

    add: Tell

    def suspects(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(len(ids), bool)

    def mended(self, sample: int, image: np.ndarray) -> None:
        return None


def decoded(images: Iterator[Stored], tell: Tell) -> Iterator[tuple[int, np.ndarray, bytes]]:
    """(row, uint8 [height, width, 3], encoded) of encoded images. `tell` is given the rows that cannot be decoded, and
    why; they come as one grey pixel.
    """
    waiting: dict[int, bytes] = {}

    def noted() -> Iterator[Stored]:
        for image in images:
            waiting[image.row] = image.content
            yield image

    for request, windows in dali.windows_on_cpu(
        _requests(noted()), decoder=dali.Decoder(is_raw=False), threads=1, prefetch=1, bad=Told(tell)
    ):
        for row, window in zip(request.ids[request.ids >= 0].tolist(), windows, strict=False):
            yield row, window, waiting.pop(row)


def disagreement(encoded: bytes, shown: np.ndarray) -> str:
    """How Pillow's picture of an image differs from what training is shown; "" if it does not."""
    try:
        right = pixels(encoded)
    except Undecodable as reason:
        return f"is shown in training, but Pillow cannot decode it ({reason})"
    if right.shape != shown.shape:
        (height, width), (their_height, their_width) = shown.shape[:2], right.shape[:2]
        return f"is {width} x {height} px in training, {their_width} x {their_height} px to Pillow"
    levels = int(np.abs(right.astype(np.int16) - shown).max())
    return f"differs in training from what Pillow shows, by up to {levels} of 255 levels" if levels else ""


def _requests(images: Iterator[Stored]) -> Iterator[Request]:
    batch: list[Stored] = []
    pixels = 0
    for image in images:
        batch.append(image)
        pixels += image.height * image.width
        if len(batch) == ROWS or pixels >= BATCH_PIXELS:
            yield _request(batch)
            batch, pixels = [], 0
    if batch:
        yield _request(batch)


def _request(batch: list[Stored]) -> Request:
    """A request for whole images. It has `ROWS` rows, as a graph wants it; those to spare have the id -1."""
    spare = ROWS - len(batch)
    ids = np.array([image.row for image in batch] + [-1] * spare)
    images = [np.frombuffer(image.content, np.uint8) for image in batch] + [np.zeros(0, np.uint8)] * spare
    zeros = np.zeros(ROWS, np.int32)
    windows = Crops(
        top=zeros,
        left=zeros,
        height=np.array([image.height for image in batch] + [1] * spare, np.int32),
        width=np.array([image.width for image in batch] + [1] * spare, np.int32),
        flip=zeros > 0,
        colour=np.zeros((ROWS, 3), np.float32),
    )
    return Request(ids, ids >= 0, images, windows).with_placeholder(ids < 0)


def is_constant(pixels: np.ndarray) -> bool:
    """Whether an image is one colour all over."""
    few = pixels[::8, ::8]  # settles it for nearly all
    return bool((few == few[0, 0]).all() and (pixels == pixels[0, 0]).all())


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the decoder's own lines on stderr, which name no file; each bad image is told once, by name."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
