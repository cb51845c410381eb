"""Whole images at a test scale: what evaluation asks of a decoder, where training asks for windows.

In: heights and widths as stored. Out: heights and widths to resize to; the resizing itself, on a CPU.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True, order=True)
class Rendering:
    """An image with its short side scaled to `resize_px`, by torchvision's names for the filter.

    With `antialias` the filter is as wide as what it shrinks, as PIL's; without, it looks at 2 (bilinear) or 4
    (bicubic) neighbours, whatever it leaves out.
    """

    resize_px: int
    interpolation: str = "bilinear"
    antialias: bool = True

    def sizes(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Int64 [n, 2]: height and width to resize to; the long side is cut to whole pixels, as by
        torchvision.Resize."""
        short = np.minimum(heights, widths).astype(np.int64)
        return np.stack([self.resize_px * heights // short, self.resize_px * widths // short], axis=1)


def resize(pixels: torch.Tensor, height: int, width: int, interpolation: str, antialias: bool) -> torch.Tensor:
    """uint8 [h, w, 3] to [height, width, 3]; if `antialias`, equal to PIL within one level of 255, bicubic within two.

    Pillow 13 scales columns first where that is cheaper, torch always rows. What bicubic overshoots is cut off in
    between, so there 0.02 % of a photo's pixels differ by more than a level, by 10 at most.
    """
    if tuple(pixels.shape[:2]) == (height, width):
        return pixels
    planes = pixels[None].permute(0, 3, 1, 2)  # in this order, so that torch sees channels_last and keeps it
    return F.interpolate(planes, size=(height, width), mode=interpolation, antialias=antialias)[0].permute(1, 2, 0)
