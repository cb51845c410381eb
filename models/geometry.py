"""Arithmetic of layer sizes, without torch: channels at a width, windows over pixels, the smallest image that passes.

In: channel counts, or the layers of a sequential network, which are asked for `kernel_size`, `stride` and the like.
Out: integers. The classes of `models.alexnet` and `models.vgg` and the table of `models.summary` are built on these.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

CHANNEL_MULTIPLE = 8  # tensor cores want it, and every allowed number of groups divides it


@dataclass(frozen=True)
class Window:
    """What a convolution or pooling layer sees at a time, in pixels of its input; square windows only."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8, at least 8. Raises ValueError unless width is above 0."""
    if not width > 0:
        raise ValueError(f"width is {width}: give a number above 0 (1.0 is the published network)")
    return max(CHANNEL_MULTIPLE, int(channels * width / CHANNEL_MULTIPLE + 0.5) * CHANNEL_MULTIPLE)


def window(layer: Any) -> Window | None:
    """The window of a convolution or pooling layer; None for a layer without one (ReLU, adaptive pooling, Linear).

    Raises ValueError for a window that is not square, or for padding given as a word.
    """
    if not hasattr(layer, "kernel_size"):
        return None
    sides = [getattr(layer, name, default) for name, default in (("kernel_size", 1), ("stride", 1), ("padding", 0))]
    return Window(*map(_side, [*sides, getattr(layer, "dilation", 1)]))


def smallest_image_px(layers: Iterable[Any]) -> int:
    """The smallest image side for which no map vanishes on the way through `layers`: 63 for AlexNet, 32 for VGG."""
    side = 1
    for seen in reversed([seen_by for layer in layers if (seen_by := window(layer)) is not None]):
        side = max(1, (side - 1) * seen.stride + seen.extent - 2 * seen.padding)
    return side


def require_image_px(model: str, image_px: int, smallest_px: int) -> None:
    """Raises ValueError, naming the smallest size that works, if images of `image_px` are too small for `model`."""
    if image_px < smallest_px:
        raise ValueError(
            f"{model}: images of {image_px} px are too small, a feature map would vanish; "
            f"the smallest size that works is {smallest_px} px"
        )


def _side(value: Any) -> int:
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ValueError(f"expected one whole number for both sides of a window, not {value}")
    return side
