"""What the loader asks of a decoder: one batch of images with their windows, before any pixel is there."""

import io
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np

from pipeline.data.windows import Windows


@dataclass(frozen=True)
class Request:
    """ids int64 [n], -1 for padding; labels int64 [n], -1 for rows that nobody looks at; images; windows in them.

    An image is uint8: encoded bytes [size], or, of a raw set, the rows [height, width, 3] that its window covers.
    """

    ids: np.ndarray
    labels: np.ndarray
    images: list[np.ndarray]
    windows: Windows

    def cut(self) -> list[np.ndarray]:
        """The windows of raw images: uint8 views [height, width, 3]."""
        lefts, widths = self.windows.left.tolist(), self.windows.width.tolist()
        return [image[:, left : left + width] for image, left, width in zip(self.images, lefts, widths, strict=True)]

    def row(self, number: int) -> "Request":
        """One row as a request of its own."""
        one = slice(number, number + 1)
        columns = {field.name: getattr(self.windows, field.name)[one] for field in fields(Windows)}
        return Request(self.ids[one], self.labels[one], self.images[one], Windows(**columns))

    def without(self, bad: np.ndarray) -> "Request":
        """This request with a grey stand-in and label -1 in the rows where `bad` (bool [n]) holds."""
        if not bad.any():
            return self
        is_raw = self.images[0].ndim == 3
        grey = np.full((1, 1, 3), 118, np.uint8) if is_raw else _grey_png()
        images = [grey if out else image for out, image in zip(bad, self.images, strict=True)]
        windows = self.windows
        corner = {name: np.where(bad, 0, getattr(windows, name)).astype(np.int32) for name in ("top", "left")}
        sides = {name: np.where(bad, 1, getattr(windows, name)).astype(np.int32) for name in ("height", "width")}
        return replace(
            self, labels=np.where(bad, -1, self.labels), images=images, windows=replace(windows, **corner, **sides)
        )


def shown(ids: np.ndarray) -> np.ndarray:
    """The samples whose images stand in the rows of `ids`: padding shows sample 0."""
    return np.maximum(ids, 0)


@cache
def _grey_png() -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (1, 1), (118, 118, 118)).save(stream, "PNG")
    return np.frombuffer(stream.getvalue(), np.uint8)
