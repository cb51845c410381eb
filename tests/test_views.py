"""How views are written, and where their crops lie: those of torchvision, of the papers' grids and scales."""

import pytest
import torch
from torchvision.transforms import CenterCrop, FiveCrop, TenCrop

from pipeline import views
from pipeline.config import Data
from pipeline.views import Scales, ViewCrop, crop_origin, parse, view_crops

SCALES = Scales(256, (256, 384, 512))
SIZES = [(256, 256, 224), (256, 341, 224), (383, 256, 224), (72, 101, 64), (71, 90, 63), (64, 64, 64), (64, 65, 64)]


def crops(view: str, image: torch.Tensor, crop_px: int, corners: str) -> list[torch.Tensor]:
    """The crops [3, crop_px, crop_px] of an image [3, height, width], whose short side is the scale."""
    height, width = image.shape[1:]
    found = []
    for crop, _ in view_crops(view, Scales(min(height, width), (0, 0, 0))):
        top, left = crop_origin(crop, height, width, crop_px, corners)
        assert 0 <= top <= height - crop_px
        assert 0 <= left <= width - crop_px
        pixels = image[:, top : top + crop_px, left : left + crop_px]
        found.append(pixels.flip(2) if crop.mirrored else pixels)
    return found


def noise(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize(("height", "width", "crop_px"), SIZES)
@pytest.mark.parametrize(
    ("view", "reference"),
    [("ten", TenCrop), ("five", FiveCrop), ("centre", lambda crop_px: lambda image: (CenterCrop(crop_px)(image),))],
)
def test_crops_of_the_whole_image_are_torchvisions(view, reference, height, width, crop_px):
    image = noise(height, width)
    found, expected = crops(view, image, crop_px, "whole"), reference(crop_px)(image)
    assert len(found) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize(("height", "width", "crop_px"), SIZES)
def test_corners_of_the_square_are_those_of_its_centre_crop(height, width, crop_px):
    """The 2012 paper's; the central crop is the image's, which may lie half a pixel from the square's."""
    image = noise(height, width)
    found = crops("ten", image, crop_px, "square")
    expected = FiveCrop(crop_px)(CenterCrop(min(height, width))(image))
    for number in range(4):
        assert torch.equal(found[number], expected[number])
    assert torch.equal(found[4], CenterCrop(crop_px)(image))
    mirrored = {crop.flip(2).numpy().tobytes() for crop in found[5:9]}
    assert mirrored == {crop.numpy().tobytes() for crop in found[:4]}


def test_the_grid_is_regular_and_spans_the_image():
    places = [crop for crop, _ in view_crops("50", SCALES)]
    assert len(places) == 50
    corners = [crop_origin(crop, 256, 384, 224, "square") for crop in places if not crop.mirrored]
    assert sorted({top for top, _ in corners}) == [0, 8, 16, 24, 32]
    assert sorted({left for _, left in corners}) == [0, 40, 80, 120, 160]
    assert len(set(corners)) == 25
    assert {crop_origin(crop, 256, 384, 224, "square") for crop in places if crop.mirrored} == set(corners)


@pytest.mark.parametrize(
    ("view", "number", "scales"),
    [
        ("centre", 1, {256}),
        ("five", 5, {256}),
        ("ten", 10, {256}),
        ("50", 50, {256}),
        ("150", 150, {256, 384, 512}),
        ("150@224-256-288", 150, {224, 256, 288}),
        ("50@256-384-512", 150, {256, 384, 512}),
        ("dense", 2, {256}),
        ("dense@384", 2, {384}),
        ("dense@256-384-512", 6, {256, 384, 512}),
        ("150+dense@256-384-512", 156, {256, 384, 512}),
    ],
)
def test_what_a_view_looks_at(view, number, scales):
    found = view_crops(view, SCALES)
    assert len(found) == number
    assert {crop.scale_px for crop, _ in found} == scales
    assert sum(weight for _, weight in found) == pytest.approx(1)


def test_parts_of_a_view_count_alike_and_share_what_they_look_at():
    weights = dict(view_crops("ten+dense", SCALES))
    assert weights[ViewCrop(256, "centre", False)] == pytest.approx(0.05)
    assert weights[ViewCrop(256, "dense", True)] == pytest.approx(0.25)
    both = dict(view_crops("centre+ten", SCALES))
    assert len(both) == 10
    assert both[ViewCrop(256, "centre", False)] == pytest.approx(0.5 + 0.05)


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ("six", "'six' must be one of centre, five, ten, 50, 150, dense"),
        ("", "'' must be one of"),
        ("ten@", "'ten@' must be one of"),
        ("dense@256-", "'dense@256-' must be one of"),
        ("ten+", "'' must be one of"),
        ("150@256", "three scales, not 1"),
        ("dense@256-256", "names a scale twice"),
        ("Ten", "'Ten' must be one of"),
    ],
)
def test_views_that_are_none(view, reason):
    with pytest.raises(ValueError, match="is no view") as caught:
        parse(view)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "three"),
    [
        ({"recipe": "vgg"}, (256, 384, 512)),
        ({"recipe": "vgg", "scale_px": (384, 384)}, (352, 384, 416)),
        ({"recipe": "alexnet"}, (224, 256, 288)),
        ({"recipe": "inception", "resize_px": 384}, (352, 384, 416)),
    ],
)
def test_the_three_scales_are_those_of_vgg_section_4_2(settings, three):
    assert Data(**settings).scales().three == three


def test_a_new_kind_of_view_is_a_line(monkeypatch):
    """Of the invented one the corners alone are scored, at two scales."""
    monkeypatch.setitem(views.KINDS, "corners", (views.KINDS["five"][0][:4], (False,)))
    crops = dict(view_crops("corners@256-384", SCALES))
    assert set(crops.values()) == {1 / 8}
    origins = {crop_origin(crop, 256, 256, 224, "whole") for crop in crops if crop.scale_px == 256}
    assert origins == {(0, 0), (0, 32), (32, 0), (32, 32)}
