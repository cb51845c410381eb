"""Where images come to lie, and what follows from it for points, boxes and masks: arithmetic, before any pixel exists.

In: windows of source images, and the sizes they are resized to. Out: coordinates there and back, masks resampled.
Coordinates are continuous: x to the right, y down, pixel number i covers i to i + 1. A window may reach beyond its
image; what lies outside shows the fill. There are two roundings: `inside` rounds the edges of the image to whole output
pixels, halves up; `place_mask` takes the source pixel that the centre of an output pixel lies in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


class Placement(NamedTuple):
    """One image's: the window in source pixels, whether it is mirrored, and the size that it is resized to."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    out_height: int
    out_width: int


@dataclass(frozen=True)
class Crops:
    """For n samples: top, left, height, width of the window in source pixels, int32 [n]; flip, bool [n]; and the
    colour shift to add to pixels in 0..1, float32 [n, 3] in R, G, B."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    flip: np.ndarray
    colour: np.ndarray


class Placements(Sequence[Placement]):
    """Those of n samples, from their crops and the output sizes [n, 2] of `Output.sizes`; made when they are asked
    for."""

    def __init__(self, crops: Crops, sizes: np.ndarray):
        self._columns = (crops.top, crops.left, crops.height, crops.width, crops.flip, *sizes.T)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        return Placement(*(column[row].item() for column in self._columns))


def clip(crops: Crops, heights: np.ndarray, widths: np.ndarray) -> tuple[Crops, np.ndarray | None]:
    """The part of each window inside its image, and how far the window reaches beyond it: int32 [n, 4] source pixels
    above, left, below, right; None if no window does. Raises ValueError for one that does not touch its image."""
    bottom, right = crops.top + crops.height, crops.left + crops.width
    beyond = np.stack([-crops.top, -crops.left, bottom - heights, right - widths], axis=1).clip(0)
    if not beyond.any():
        return crops, None
    height, width = crops.height - beyond[:, 0] - beyond[:, 2], crops.width - beyond[:, 1] - beyond[:, 3]
    if (outside := (height < 1) | (width < 1)).any():
        row = int(outside.argmax())
        raise ValueError(f"window {row} lies outside its image of {widths[row]} x {heights[row]} px")
    whole = {"top": crops.top.clip(0), "left": crops.left.clip(0), "height": height, "width": width}
    return replace(crops, **{name: column.astype(np.int32) for name, column in whole.items()}), beyond.astype(np.int32)


def inside(crops: Crops, beyond: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Where the images lie in their outputs before these are mirrored: int64 [n, 4] top, left, height, width in output
    pixels, at least one each. `crops` and `beyond` are as `clip` returns them, `sizes` [n, 2] of whole outputs."""
    edges = []
    for axis, seen in enumerate((crops.height, crops.width)):
        before, after, size = beyond[:, axis].astype(np.int64), beyond[:, axis + 2], sizes[:, axis]
        window = before + seen + after
        first = np.minimum(_rounded(before * size, window), size - 1)
        edges.append((first, np.maximum(_rounded((before + seen) * size, window), first + 1) - first))
    (top, height), (left, width) = edges
    return np.stack([top, left, height, width], axis=1)


def place_points(points: np.ndarray, placement: Placement) -> np.ndarray:
    """Float64 [..., 2] of x, y in the source image, in the output."""
    window, scale = _window_and_scale(placement)
    placed = (np.asarray(points, np.float64) - window) * scale
    if placement.flip:
        placed[..., 0] = placement.out_width - placed[..., 0]
    return placed


def source_points(points: np.ndarray, placement: Placement) -> np.ndarray:
    """The inverse of `place_points`: a detection goes back to the photo's own pixels."""
    window, scale = _window_and_scale(placement)
    placed = np.array(points, np.float64)
    if placement.flip:
        placed[..., 0] = placement.out_width - placed[..., 0]
    return placed / scale + window


def place_boxes(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """Float64 [..., 4] of left, top, right, bottom edges in the source image, in the output, not cut off at its
    border."""
    return _ordered(place_points(np.reshape(boxes, (*np.shape(boxes)[:-1], 2, 2)), placement))


def source_boxes(boxes: np.ndarray, placement: Placement) -> np.ndarray:
    """The inverse of `place_boxes`."""
    return _ordered(source_points(np.reshape(boxes, (*np.shape(boxes)[:-1], 2, 2)), placement))


def place_mask(mask: np.ndarray, placement: Placement, fill: int) -> np.ndarray:
    """A mask of indices [height, width] in the output, [out_height, out_width], by nearest neighbour: no index but
    those of the mask, and `fill` where the window reaches beyond it."""
    rows = _nearest(placement.top, placement.height, placement.out_height)
    columns = _nearest(placement.left, placement.width, placement.out_width)
    if placement.flip:
        columns = columns[::-1]
    height, width = mask.shape
    placed = mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    placed[(rows < 0) | (rows >= height)] = fill
    placed[:, (columns < 0) | (columns >= width)] = fill
    return placed


def source_mask(placed: np.ndarray, placement: Placement, height: int, width: int, fill: int) -> np.ndarray:
    """The inverse of `place_mask` for an image of `height` x `width`: `fill` outside the window, else the index of the
    output pixel that the centre of the source pixel lies in."""
    rows, columns = np.arange(height) - placement.top, np.arange(width) - placement.left
    outside = [(at < 0) | (at >= of) for at, of in ((rows, placement.height), (columns, placement.width))]
    rows = (2 * rows + 1) * placement.out_height // (2 * placement.height)
    columns = (2 * columns + 1) * placement.out_width // (2 * placement.width)
    if placement.flip:
        columns = placement.out_width - 1 - columns
    mask = placed[rows.clip(0, placement.out_height - 1)[:, None], columns.clip(0, placement.out_width - 1)]
    mask[outside[0]] = fill
    mask[:, outside[1]] = fill
    return mask


def _window_and_scale(placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    scale = np.array([placement.out_width / placement.width, placement.out_height / placement.height])
    return np.array([placement.left, placement.top], np.float64), scale


def _ordered(corners: np.ndarray) -> np.ndarray:
    """[..., 2, 2] to [..., 4]; mirroring exchanges left and right."""
    return np.concatenate([corners.min(axis=-2), corners.max(axis=-2)], axis=-1)


def _nearest(first: int, length: int, out_length: int) -> np.ndarray:
    """The source pixels that the centres of output pixels lie in."""
    return first + (2 * np.arange(out_length) + 1) * length // (2 * out_length)


def _rounded(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
