"""Crops against torchvision's own, pixel for pixel and in the same order."""

import pytest
import torch
from torchvision.transforms import CenterCrop, FiveCrop, TenCrop

from pipeline.views import VIEWS, crops

SIZES = [(256, 224), (72, 64), (71, 64), (72, 63), (67, 64), (65, 64), (64, 64)]


def images(px: int) -> torch.Tensor:
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(px))


@pytest.mark.parametrize(("px", "crop_px"), SIZES)
@pytest.mark.parametrize(
    ("view", "reference"),
    [
        ("ten", TenCrop),
        ("five", FiveCrop),
        ("centre", lambda crop_px: lambda batch: (CenterCrop(crop_px)(batch),)),
    ],
)
def test_view_equals_torchvisions(view, reference, px, crop_px):
    batch = images(px)
    found, expected = crops(batch, crop_px, VIEWS[view]), reference(crop_px)(batch)
    assert len(found) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_ten_crops_of_an_image_differ():
    found = torch.stack(crops(images(72), 64))
    assert len(found.flatten(1).unique(dim=0)) == 10


def test_wanted_crops_come_in_the_order_asked_for():
    batch = images(72)
    ten = crops(batch, 64)
    assert all(torch.equal(found, ten[n]) for found, n in zip(crops(batch, 64, (7, 2, 4)), (7, 2, 4), strict=True))
