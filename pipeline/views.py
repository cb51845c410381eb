"""Test-time views: at which scales an image is looked at, and which crops of it are scored. Arithmetic, without torch.

A view is written PART or PART+PART, a part KIND or KIND@SCALES, scales PX or PX-PX-PX (of the short side): `ten`,
`dense@384`, `150+dense@256-384-512`. All softmax outputs of a part count alike, over its scales and crops, and all
parts of a view alike. Without scales a part is scored at data.resize_px.

    centre   the central crop
    five     the corners and the centre                             Krizhevsky et al. 2012, section 4.1
    ten      five, and their mirror images                          the same
    50       a regular 5 x 5 grid over the whole image, mirrored    Simonyan and Zisserman 2014, section 3.2
    150      50 at each of three scales                             the same, section 4.2 says which
    dense    the network as a convolution over the whole image, and over its mirror image      the same, section 3.2
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

GRID = 5
_FIVE = ["top left", "top right", "bottom left", "bottom right", "centre"]
_GRID = [(row, column) for row in range(GRID) for column in range(GRID)]
# Where the crops of a kind lie, and whether they are mirrored: not, or each of them too.
KINDS: dict[str, tuple[Sequence[str | tuple[int, int]], tuple[bool, ...]]] = {
    "centre": (["centre"], (False,)),
    "five": (_FIVE, (False,)),
    "ten": (_FIVE, (False, True)),
    "50": (_GRID, (False, True)),
    "150": (_GRID, (False, True)),
    "dense": (["dense"], (False, True)),
}
_PART = re.compile(r"([a-z0-9]+)(?:@(\d+(?:-\d+)*))?")


@dataclass(frozen=True)
class Part:
    kind: str
    scales_px: tuple[int, ...]  # empty: the settings' own


class ViewCrop(NamedTuple):
    """One softmax output: of the crop `place` (or "dense") of an image with short side `scale_px`, mirrored or not."""

    scale_px: int
    place: str | tuple[int, int]
    mirrored: bool


class Scales(NamedTuple):
    """The settings' own scales: `one` short side, and the `three` of a multi-scale test."""

    one: int
    three: tuple[int, int, int]


def parse(view: str) -> tuple[Part, ...]:
    """The parts of a view. Raises ValueError that says how views are written."""
    parts = []
    for text in view.split("+"):
        match = _PART.fullmatch(text)
        if not match or match[1] not in KINDS:
            raise ValueError(
                f"is no view: {text!r} must be one of {', '.join(KINDS)}, with scales behind an @ if wanted "
                f"(dense@384, 50@256-384-512), and several joined by a + (150+dense)"
            )
        scales = tuple(int(px) for px in (match[2] or "").split("-") if px)
        if match[1] == "150" and len(scales) not in (0, 3):
            raise ValueError(f"is no view: {text!r} is 50 crops at each of three scales, not {len(scales)}")
        if len(set(scales)) != len(scales):
            raise ValueError(f"is no view: {text!r} names a scale twice")
        parts.append(Part(match[1], scales))
    return tuple(parts)


def view_crops(view: str, scales: Scales) -> list[tuple[ViewCrop, float]]:
    """All crops of a view, with weights that add up to 1. Raises ValueError as `parse` does."""
    parts = parse(view)
    weights: dict[ViewCrop, float] = {}
    for part in parts:
        three = part.kind == "150"
        several = part.scales_px or (scales.three if three else (scales.one,))
        places, mirroring = KINDS[part.kind]
        crops = [ViewCrop(px, place, mirrored) for px in several for mirrored in mirroring for place in places]
        for crop in crops:
            weights[crop] = weights.get(crop, 0.0) + 1 / len(crops) / len(parts)
    return list(weights.items())


@lru_cache(maxsize=1 << 16)
def crop_origin(crop: ViewCrop, height: int, width: int, crop_px: int, corners: str) -> tuple[int, int]:
    """Top and left of a crop in an image that was resized to `height` x `width`; of a mirrored one, where
    it lies before it is mirrored.

    With `corners` "square", five and ten crops have their corners in the central square, which is all that the network
    of 2012 was shown; with "whole" in those of the image, as torchvision's TenCrop. A grid always spans the image.
    """
    above = before = 0
    if isinstance(crop.place, tuple):
        down, right = (number / (GRID - 1) for number in crop.place)
    elif crop.place == "centre":
        down = right = 0.5
    else:
        down, right = float(crop.place.startswith("bottom")), float(crop.place.endswith("right"))
        if corners == "square":
            above, before = round((height - crop.scale_px) / 2), round((width - crop.scale_px) / 2)
            height = width = crop.scale_px
    top, left = (
        round(down * (height - crop_px)),
        round(right * (width - crop_px)),
    )  # as torchvision's center_crop rounds
    return above + top, before + (width - crop_px - left if crop.mirrored else left)
