"""What the loader asks of a decoder: one batch of images with their windows, before any pixel is there."""

import io
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import torch

from pipeline.data.decoding.pillow import Undecodable, pixels
from pipeline.data.geometry import Crops


@dataclass(frozen=True)
class Request:
    """ids int64 [n], -1 for padding; valid bool [n], false for rows that nobody looks at, padding and placeholders;
    images; windows in them, and how far these reached beyond their images before they were cut off there (see
    `geometry.clip`), None if none did; in training, the targets in the making.

    An image is uint8: encoded bytes [size], or, of a raw set, the rows [height, width, 3] that its window covers.
    """

    ids: np.ndarray
    valid: np.ndarray
    images: list[np.ndarray]
    windows: Crops
    beyond: np.ndarray | None = None
    targets: Future[torch.Tensor] | None = None

    def cut(self) -> list[np.ndarray]:
        """The windows of raw images: uint8 views [height, width, 3]."""
        lefts, widths = self.windows.left.tolist(), self.windows.width.tolist()
        return [image[:, left : left + width] for image, left, width in zip(self.images, lefts, widths, strict=True)]

    def row(self, number: int) -> "Request":
        """One row as a request of its own."""
        rows = slice(number, number + 1)
        columns = {field.name: getattr(self.windows, field.name)[rows] for field in fields(Crops)}
        beyond = None if self.beyond is None else self.beyond[rows]
        return Request(self.ids[rows], self.valid[rows], self.images[rows], Crops(**columns), beyond)

    def shown_by_pillow(self, row: int) -> np.ndarray | str:
        """The window of an encoded image, decoded by Pillow, as an uncompressed PNG: graphs take encoded images alone.

        Or, as a text, why there is none.
        """
        windows = self.windows
        top, left, height, width = (int(getattr(windows, name)[row]) for name in ("top", "left", "height", "width"))
        try:
            picture = pixels(self.images[row].tobytes())
        except Undecodable as reason:
            return str(reason)
        except MemoryError:
            return "out of memory"
        if top + height > picture.shape[0] or left + width > picture.shape[1]:
            return f"it is {picture.shape[1]} x {picture.shape[0]} px, smaller than its index says"
        return _plain_png(picture[top : top + height, left : left + width])

    def with_images(self, images: dict[int, np.ndarray]) -> "Request":
        """This request with the encoded windows `images` in some rows, in place of the images they are cut from."""
        rows = list(images)
        top, left = self.windows.top.copy(), self.windows.left.copy()
        top[rows], left[rows] = 0, 0
        mixed = [images.get(row, image) for row, image in enumerate(self.images)]
        return replace(self, images=mixed, windows=replace(self.windows, top=top, left=left))

    def with_placeholder(self, bad: np.ndarray) -> "Request":
        """This request with a grey stand-in, not valid, in the rows where `bad` (bool [n]) holds."""
        if not bad.any():
            return self
        is_raw = self.images[0].ndim == 3
        grey = np.full((1, 1, 3), 118, np.uint8) if is_raw else _grey_png()
        images = [grey if out else image for out, image in zip(bad, self.images, strict=True)]
        windows = self.windows
        corner = {name: np.where(bad, 0, getattr(windows, name)).astype(np.int32) for name in ("top", "left")}
        sides = {name: np.where(bad, 1, getattr(windows, name)).astype(np.int32) for name in ("height", "width")}
        beyond = None if self.beyond is None else np.where(bad[:, None], 0, self.beyond)
        windows = replace(windows, **corner, **sides)
        return replace(self, valid=self.valid & ~bad, images=images, windows=windows, beyond=beyond)


def clamp_padding(ids: np.ndarray) -> np.ndarray:
    """The samples whose images stand in the rows of `ids`: padding shows sample 0."""
    return np.maximum(ids, 0)


@cache
def _grey_png() -> np.ndarray:
    return _plain_png(np.full((1, 1, 3), 118, np.uint8))


def _plain_png(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=0)
    return np.frombuffer(stream.getvalue(), np.uint8)
