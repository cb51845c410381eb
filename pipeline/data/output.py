"""What is made of a decoded window: its size, and whether it stays uint8 or becomes what the network takes.

In: heights and widths in source pixels. Out: the sizes to resize to; the resizing itself, on a CPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.data.geometry import Crops, inside

RGB = tuple[float, float, float]


class Normal(NamedTuple):
    """Of pixels in 0..1: the mean that is taken away, and the deviation that the rest is divided by."""

    mean: RGB
    std: RGB


@dataclass(frozen=True, order=True)
class Output:
    """Windows scaled so that their short side, or with `square` both sides, are `px` long, by torchvision's names for
    the filter.

    With `antialias` the filter is as wide as what it shrinks, as PIL's; without, it looks at 2 (bilinear) or 4
    (bicubic) neighbours, whatever it leaves out. Without `normal` images are uint8 [height, width, 3]; with it they are
    mirrored, colour-shifted and normalised, float32 [n, 3, px, px] in channels_last memory, and must be square. Windows
    may reach beyond their images if there is a `fill`, R, G, B in 0..255, for what lies there.
    """

    px: int
    interpolation: str = "bilinear"
    antialias: bool = True
    square: bool = False
    normal: Normal | None = None
    fill: tuple[int, int, int] | None = None

    def sizes(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Int64 [n, 2]: height and width to resize windows to; the long side is cut to whole pixels, as by
        torchvision.Resize."""
        if self.square:
            return np.full((len(heights), 2), self.px)
        short = np.minimum(heights, widths).astype(np.int64)
        return np.stack([self.px * heights // short, self.px * widths // short], axis=1)

    def layout(self, windows: Crops, beyond: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Of a request's windows, as `geometry.clip` cut them off: `sizes` int64 [n, 2], and where the images lie in
        them, int64 [n, 4] (see `geometry.inside`). Raises ValueError where there should be a `fill`."""
        if beyond is None:
            sizes = self.sizes(windows.height, windows.width)
            return sizes, np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        if self.fill is None:
            raise ValueError("a window reaches beyond its image, and no fill says what lies there")
        above, left, below, right = beyond.T
        sizes = self.sizes(windows.height + above + below, windows.width + left + right)
        return sizes, inside(windows, beyond, sizes)


def resize(pixels: torch.Tensor, height: int, width: int, interpolation: str, antialias: bool) -> torch.Tensor:
    """uint8 [h, w, 3] to [height, width, 3]; if `antialias`, equal to PIL within one level of 255, bicubic within two.

    Pillow 13 scales columns first where that is cheaper, torch always rows. What bicubic overshoots is cut off in
    between, so there 0.02 % of a photo's pixels differ by more than a level, by 10 at most.
    """
    if tuple(pixels.shape[:2]) == (height, width):
        return pixels
    planes = pixels[None].permute(0, 3, 1, 2)  # in this order, so that torch sees channels_last and keeps it
    return F.interpolate(planes, size=(height, width), mode=interpolation, antialias=antialias)[0].permute(1, 2, 0)
