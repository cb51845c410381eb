"""Test-time views: which crops of an image are scored. Plain functions of a batch of square images.

In: images [n, 3, px, px]. Out: crops, ordered as torchvision.transforms.TenCrop orders them: top left, top right,
bottom left, bottom right, centre, then the same five of the mirrored image. Krizhevsky et al. 2012, section 4.1.
"""

import torch

CENTRE = 4  # its place among the ten
VIEWS: dict[str, tuple[int, ...]] = {"centre": (CENTRE,), "five": tuple(range(5)), "ten": tuple(range(10))}


def crops(images: torch.Tensor, crop_px: int, wanted: tuple[int, ...] = VIEWS["ten"]) -> list[torch.Tensor]:
    """The `wanted` ones of the ten crops, each [n, 3, crop_px, crop_px]; 5 to 9 are cut from the mirrored image."""
    sides = {False: images, True: images.flip(-1) if max(wanted) >= 5 else images}
    end = images.shape[-1] - crop_px
    middle = round(end / 2)  # as torchvision's center_crop rounds
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))

    def cut(number: int) -> torch.Tensor:
        top, left = corners[number % 5]
        return sides[number >= 5][..., top : top + crop_px, left : left + crop_px]

    return [cut(number) for number in wanted]
