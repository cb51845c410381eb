"""Windows equal an independent scalar implementation, lie inside their image, and follow the papers' distributions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import crops
from tests.test_rng import scalar_mix

HEIGHTS, WIDTHS = np.array([375, 500, 224, 1, 3000]), np.array([500, 333, 224, 900, 2000])
IDS = np.array([0, 1, 77, 1_281_166, 10**9])
PCA = (crops.IMAGENET_EIGENVALUES, crops.IMAGENET_EIGENVECTORS, 0.1)
SIDES = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=30)


def scalar_uniform(seed: int, epoch: int, sample: int, stream: int) -> float:
    key = 0
    for number in (seed, epoch, stream):
        key = scalar_mix(key ^ scalar_mix(number))
    return (scalar_mix(scalar_mix(sample) ^ key) >> 11) / 2**53


def scalar_offset(random: float, room: int) -> int:
    return math.floor(random * (room + 1))


def scalar_alexnet(height, width, sample, seed, epoch, crop=224, resize=256):
    short = min(height, width)
    side = max(1, round(short * (crop / resize)))
    top = (height - short) // 2 + scalar_offset(scalar_uniform(seed, epoch, sample, 0), short - side)
    left = (width - short) // 2 + scalar_offset(scalar_uniform(seed, epoch, sample, 1), short - side)
    return top, left, side, side


def scalar_vgg(height, width, sample, seed, epoch):
    scale = 256 + math.floor(scalar_uniform(seed, epoch, sample, 9) * 257)
    side = min(max(1, round(min(height, width) * (224 / scale))), height, width)
    top = scalar_offset(scalar_uniform(seed, epoch, sample, 0), height - side)
    left = scalar_offset(scalar_uniform(seed, epoch, sample, 1), width - side)
    return top, left, side, side


def scalar_inception(height, width, sample, seed, epoch):
    for attempt in range(10):
        first, second, third, fourth = (scalar_uniform(seed, epoch, sample, 16 + 4 * attempt + k) for k in range(4))
        area = height * width * (0.08 + first * 0.92)
        aspect = math.exp(math.log(3 / 4) + second * (math.log(4 / 3) - math.log(3 / 4)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return scalar_offset(third, height - h), scalar_offset(fourth, width - w), h, w
    if width / height < 3 / 4:
        h, w = round(width / (3 / 4)), width
    elif width / height > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


RECIPES = {
    "alexnet": ({"crop_px": 224, "resize_px": 256}, scalar_alexnet),
    "vgg": ({"crop_px": 224, "scale_px": (256, 512)}, scalar_vgg),
    "inception": ({"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)}, scalar_inception),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (5, 89)])
def test_windows_equal_a_scalar_implementation(recipe, seed, epoch):
    settings, scalar = RECIPES[recipe]
    rng = np.random.default_rng(0)
    heights, widths = np.append(HEIGHTS, rng.integers(1, 900, 300)), np.append(WIDTHS, rng.integers(1, 900, 300))
    ids = np.append(IDS, rng.integers(0, 10**7, 300))
    got = getattr(crops, recipe)(heights, widths, ids, seed, epoch, **settings)
    for n, (height, width, sample) in enumerate(zip(heights.tolist(), widths.tolist(), ids.tolist(), strict=True)):
        expected = scalar(height, width, sample, seed, epoch)
        assert (got.top[n], got.left[n], got.height[n], got.width[n]) == expected
        assert got.flip[n] == (scalar_uniform(seed, epoch, sample, 2) < 0.5)


def test_small_crops_are_cut_from_all_of_the_central_square():
    heights, widths, ids = np.array([300, 640, 480]), np.array([500, 480, 480]), np.array([3, 4, 5])
    got = crops.alexnet(heights, widths, ids, 1, 2, crop_px=64, resize_px=256)
    for n in range(3):
        expected = scalar_alexnet(int(heights[n]), int(widths[n]), int(ids[n]), 1, 2, crop=64, resize=256)
        assert (got.top[n], got.left[n], got.height[n], got.width[n]) == expected


def scalar_normal(seed: int, epoch: int, sample: int, stream: int) -> float:
    """Box-Muller."""
    first, second = (scalar_uniform(seed, epoch, sample, stream + k) for k in range(2))
    return math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)


def test_colour_shifts_equal_a_scalar_implementation():
    """Three normal numbers an image, of streams that no other draw uses."""
    got = crops.colour_shift(5, 89, IDS, PCA)
    values, vectors, std = PCA
    for n, sample in enumerate(IDS.tolist()):
        alphas = [std * scalar_normal(5, 89, sample, stream) for stream in (3, 5, 7)]
        expected = [sum(vectors[c, k] * alphas[k] * values[k] for k in range(3)) for c in range(3)]
        assert got[n].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("recipe", [*RECIPES, "whole"])
@given(sides=SIDES)
def test_windows_lie_inside_the_image(recipe, sides):
    heights, widths = np.array(sides).T
    ids = np.arange(len(sides))
    if recipe == "whole":
        got = crops.whole(heights, widths)
    else:
        got = getattr(crops, recipe)(heights, widths, ids, 0, 0, **RECIPES[recipe][0])
    assert (got.height >= 1).all()
    assert (got.width >= 1).all()
    assert (got.top >= 0).all()
    assert (got.left >= 0).all()
    assert (got.top + got.height <= heights).all()
    assert (got.left + got.width <= widths).all()


def test_a_sample_gets_the_same_window_in_any_company():
    settings, _ = RECIPES["inception"]
    together = crops.inception(HEIGHTS, WIDTHS, IDS, 3, 4, **settings, pca=PCA)
    for n in range(len(IDS)):
        alone = crops.inception(HEIGHTS[n : n + 1], WIDTHS[n : n + 1], IDS[n : n + 1], 3, 4, **settings, pca=PCA)
        for name in ("top", "left", "height", "width", "flip", "colour"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[n])


def test_alexnet_crops_are_spread_over_all_33_places():
    n = 20_000
    got = crops.alexnet(np.full(n, 256), np.full(n, 400), np.arange(n), 0, 0, crop_px=224, resize_px=256)
    assert set(got.top.tolist()) == set(range(33))
    assert set(got.left.tolist()) == set(range(72, 72 + 33))
    assert np.bincount(got.top, minlength=33).std() < 40  # 606 each, binomial deviation 24
    assert got.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(got.top, got.left)[0, 1]) < 0.03
    assert abs(np.corrcoef(got.top, got.flip)[0, 1]) < 0.03


def test_vgg_scales_are_spread_over_the_range():
    n = 20_000
    got = crops.vgg(np.full(n, 2240), np.full(n, 2240), np.arange(n), 0, 0, crop_px=224, scale_px=(256, 512))
    assert (got.height.min(), got.height.max()) == (980, 1960)  # 2240 * 224 / 512 and / 256
    scale = 2240 * 224 / got.height
    assert scale.mean() == pytest.approx(384, rel=0.01)


def test_another_epoch_seed_or_sample_gives_another_window():
    def one(seed, epoch, sample):
        got = crops.alexnet(
            np.array([5000]), np.array([5000]), np.array([sample]), seed, epoch, crop_px=224, resize_px=256
        )
        return int(got.top[0]), int(got.left[0])

    assert len({one(0, 0, 0), one(1, 0, 0), one(0, 1, 0), one(0, 0, 1)}) == 4


def test_colour_noise_has_the_covariance_of_the_paper():
    n = 100_000
    shift = crops.colour_shift(0, 0, np.arange(n), PCA).astype(np.float64)
    values, vectors, std = PCA
    expected = vectors @ np.diag((values * std) ** 2) @ vectors.T
    assert np.abs(shift.mean(axis=0)).max() < 3e-4
    assert np.allclose(np.cov(shift.T), expected, rtol=0.03, atol=1e-7)


def test_pca_of_a_covariance_gives_it_back():
    covariance = np.array([[0.08, 0.07, 0.06], [0.07, 0.08, 0.07], [0.06, 0.07, 0.09]])
    values, vectors = crops.pca_of(covariance)
    assert list(values) == sorted(values, reverse=True)
    assert np.allclose(vectors @ np.diag(values) @ vectors.T, covariance)


def test_imagenet_constants_are_a_principal_basis():
    vectors = crops.IMAGENET_EIGENVECTORS
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    assert list(crops.IMAGENET_EIGENVALUES) == sorted(crops.IMAGENET_EIGENVALUES, reverse=True)


def test_no_colour_noise_without_pca():
    got = crops.alexnet(HEIGHTS, WIDTHS, IDS, 0, 0, crop_px=224, resize_px=256)
    assert not got.colour.any()


@pytest.mark.parametrize("aspect", [(0.1, 0.3), (3.0, 5.0)])
def test_inception_never_gives_an_empty_window(aspect):
    heights, widths = np.array([1, 1, 50, 1]), np.array([50, 1, 1, 4])
    seen = crops.inception(heights, widths, np.arange(4), 0, 0, area=(0.08, 1.0), aspect=aspect)
    assert (seen.height >= 1).all()
    assert (seen.width >= 1).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (30, 50, (0, 0, 30, 50)),
        (10, 160, (0, 0, 10, 160)),
        (10, 1000, (0, 420, 10, 160)),
        (1000, 10, (420, 0, 160, 10)),
        (1, 20_001, (0, 9992, 1, 16)),
    ],
)
def test_evaluation_sees_the_whole_image_or_the_middle_of_a_line(height, width, expected):
    seen = crops.whole(np.array([height], np.int32), np.array([width], np.int32))
    assert (seen.top[0], seen.left[0], seen.height[0], seen.width[0]) == expected
    assert not seen.flip.any()
    assert not seen.colour.any()
