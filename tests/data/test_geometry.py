"""Placements against scalar arithmetic, one pixel at a time, and there and back."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import geometry
from pipeline.data.decoding.dali import Decoder
from pipeline.data.decoding.decoder import Workers, decode
from pipeline.data.geometry import Crops, Placement, Placements, clip
from pipeline.data.output import Normal, Output
from pipeline.data.request import Request
from pipeline.linting.pixels import Told
from tests.data.decoding.test_decoder import refuse
from tests.data.decoding.test_gpu_graphs import no_events, png

__all__ = ["no_events"]  # a fixture: without a GPU, there are no events

VOID, FILL = 255, (9, 99, 199)
sides = st.integers(1, 60)
placements = st.builds(
    Placement, st.integers(-40, 40), st.integers(-40, 40), sides, sides, st.booleans(), st.integers(1, 40), sides
)


def crops(*rows: tuple[int, int, int, int], flip: bool = False) -> Crops:
    top, left, height, width = np.array(rows, np.int32).T
    return Crops(top, left, height, width, np.full(len(rows), flip), np.zeros((len(rows), 3), np.float32))


@given(placement=placements, x=st.floats(-100, 100), y=st.floats(-100, 100))
def test_points_go_there_as_in_scalar_arithmetic_and_come_back(placement, x, y):
    (placed,) = geometry.place_points(np.array([[x, y]]), placement)
    across = (x - placement.left) / placement.width * placement.out_width
    expected = placement.out_width - across if placement.flip else across
    assert placed == pytest.approx(
        [expected, (y - placement.top) / placement.height * placement.out_height], abs=1e-6, rel=1e-9
    )
    assert geometry.source_points(placed, placement) == pytest.approx([x, y], abs=1e-6)


@given(placement=placements, box=st.tuples(*[st.floats(-50, 50)] * 4))
def test_boxes_stay_boxes_and_come_back(placement, box):
    left, right, top, bottom = *sorted(box[:2]), *sorted(box[2:])
    placed = geometry.place_boxes(np.array([[left, top, right, bottom]] * 2), placement)
    assert (placed[:, 0] <= placed[:, 2]).all()
    assert (placed[:, 1] <= placed[:, 3]).all()
    corners = geometry.place_points(np.array([[left, top], [right, bottom]]), placement)
    assert sorted(placed[0, [0, 2]]) == sorted(corners[:, 0])
    assert geometry.source_boxes(placed, placement)[1] == pytest.approx([left, top, right, bottom], abs=1e-6)


def test_a_box_in_a_mirrored_window_by_hand():
    """A window of 100 x 50 px at (10, 20), shown at double size, mirrored."""
    placement = Placement(top=20, left=10, height=50, width=100, flip=True, out_height=100, out_width=200)
    assert geometry.place_boxes(np.array([30.0, 25, 50, 40]), placement).tolist() == [120, 10, 160, 40]


@given(placement=placements, height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_masks_are_the_nearest_pixels_one_by_one(placement, height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 21, (height, width), dtype=np.uint8)
    placed = geometry.place_mask(mask, placement, VOID)
    assert placed.shape == (placement.out_height, placement.out_width)
    assert placed.dtype == np.uint8
    assert set(placed.ravel().tolist()) <= {*mask.ravel().tolist(), VOID}  # no new values
    for row in range(placement.out_height):
        y = placement.top + math.floor(Fraction(2 * row + 1, 2) * placement.height / placement.out_height)
        for column in range(placement.out_width):
            across = placement.out_width - 1 - column if placement.flip else column
            x = placement.left + math.floor(Fraction(2 * across + 1, 2) * placement.width / placement.out_width)
            inside = 0 <= y < height and 0 <= x < width
            assert placed[row, column] == (mask[y, x] if inside else VOID)


@given(placement=placements, factor=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_mask_that_was_enlarged_comes_back(placement, factor, seed):
    placement = placement._replace(out_height=factor * placement.height, out_width=factor * placement.width)
    mask = np.random.default_rng(seed).integers(0, 21, (30, 25), dtype=np.uint8)
    back = geometry.source_mask(geometry.place_mask(mask, placement, VOID), placement, 30, 25, VOID)
    rows, columns = np.arange(30) - placement.top, np.arange(25) - placement.left
    seen = ((rows >= 0) & (rows < placement.height))[:, None] & ((columns >= 0) & (columns < placement.width))
    assert np.array_equal(back, np.where(seen, mask, VOID))


def test_a_mask_follows_pillows_nearest_neighbour():
    """Where Pillow's floating point does not fall between two pixels."""
    mask = np.random.default_rng(0).integers(0, 21, (48, 36), dtype=np.uint8)
    placed = geometry.place_mask(mask, Placement(6, 3, 41, 31, True, 25, 18), VOID)
    cut = Image.fromarray(mask).crop((3, 6, 34, 47)).resize((18, 25), Image.Resampling.NEAREST)
    assert np.array_equal(placed, np.asarray(cut)[:, ::-1])


@given(
    box=st.tuples(st.integers(-30, 30), st.integers(-30, 30), sides, sides),
    height=sides,
    width=sides,
    px=st.integers(1, 50),
)
def test_what_lies_inside_is_rounded_as_stated(box, height, width, px):
    top, left, tall, wide = box
    asked = crops(box)
    bottom, right = min(top + tall, height), min(left + wide, width)
    if bottom <= max(top, 0) or right <= max(left, 0):
        with pytest.raises(ValueError, match="outside its image"):
            clip(asked, np.array([height]), np.array([width]))
        return
    windows, beyond = clip(asked, np.array([height]), np.array([width]))
    assert [int(getattr(windows, name)[0]) for name in ("top", "left", "height", "width")] == [
        max(top, 0),
        max(left, 0),
        bottom - max(top, 0),
        right - max(left, 0),
    ]
    if beyond is None:
        assert windows is asked
        return
    sizes, inside = Output(px, square=True, fill=FILL).layout(windows, beyond)
    assert sizes.tolist() == [[px, px]]
    first = math.floor(Fraction((max(top, 0) - top) * px, tall) + Fraction(1, 2))
    last = math.floor(Fraction((bottom - top) * px, tall) + Fraction(1, 2))
    first = min(first, px - 1)
    assert inside[0, [0, 2]].tolist() == [first, max(last, first + 1) - first]
    assert (inside[0, :2] + inside[0, 2:] <= px).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("on_gpu_graph", [False, True])
def test_pixels_beyond_the_image_are_the_fill(flip, raw, on_gpu_graph, no_events):
    """The graph of GPUs runs on DALI's CPU backend here. Scale 1, so no filter mixes pixels; masks agree pixel for
    pixel with their images."""
    picture = photo(1, 0, 40, 50)
    boxes = [(-8, -5, 32, 32), (20, 30, 32, 32), (4, 5, 32, 32), (-12, 10, 32, 32)]
    asked = crops(*boxes, flip=flip)
    windows, beyond = clip(asked, np.full(4, 40), np.full(4, 50))
    assert beyond is not None
    encoded = [np.frombuffer(png(picture), np.uint8)] * 4
    if raw:
        encoded = [picture[top : top + tall] for top, tall in zip(windows.top, windows.height, strict=True)]
        windows = replace(windows, top=np.zeros_like(windows.top))
    request = Request(np.arange(4), np.ones(4, bool), encoded, windows, beyond)
    workers = Workers(torch.device("cpu"), on_gpu_graph, threads=2, prefetch=1)
    plain, normal = Output(32, square=True, fill=FILL), Normal((0, 0, 0), (1 / 255,) * 3)
    outputs = [plain, replace(plain, normal=normal)]
    ((_, (images, batch)),) = decode(iter([request]), Decoder(raw), outputs, workers, Told(refuse))
    for row, (top, left, _, _) in enumerate(boxes):
        expected = np.empty((32, 32, 3), np.uint8)
        for y in range(32):
            for x in range(32):
                inside = 0 <= top + y < 40 and 0 <= left + x < 50
                expected[y, x] = picture[top + y, left + x] if inside else FILL
        assert np.array_equal(np.asarray(images[row]), expected)  # not mirrored: views are cut from it
        mirrored = expected[:, ::-1] if flip else expected
        assert np.array_equal(batch[row].permute(1, 2, 0).round().numpy(), mirrored)
        mask = geometry.place_mask(picture[..., 0], Placements(asked, np.full((4, 2), 32))[row], FILL[0])
        assert np.array_equal(mask, mirrored[..., 0])


def test_a_letterboxed_image_keeps_its_shape():
    """A photo of 60 x 30 px in a square of its long side: the middle half of the output is the photo."""
    windows, beyond = clip(crops((-15, 0, 60, 60)), np.array([30]), np.array([60]))
    _, inside = Output(32, square=True, fill=FILL).layout(windows, beyond)
    assert inside.tolist() == [[8, 0, 16, 32]]


def test_a_window_beyond_the_image_needs_a_fill():
    windows, beyond = clip(crops((-1, 0, 8, 8)), np.array([30]), np.array([60]))
    with pytest.raises(ValueError, match="no fill"):
        Output(32).layout(windows, beyond)


def test_a_placeholder_has_no_outside():
    windows, beyond = clip(crops((-1, 0, 8, 8), (0, -2, 8, 8)), np.full(2, 30), np.full(2, 60))
    images: Any = [np.zeros(1, np.uint8)] * 2
    request = Request(np.arange(2), np.ones(2, bool), images, windows, beyond)
    left_out = request.with_placeholder(np.array([True, False]))
    assert left_out.beyond is not None
    assert left_out.beyond.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0]]
    assert left_out.row(1).beyond.tolist() == [[0, 2, 0, 0]]
