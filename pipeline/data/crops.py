"""Which part of each image is seen, whether it is flipped and how its colours change: pure functions of sample ids.

In: heights and widths in pixels, ids, a seed, an epoch. Out: integer source windows, flips and colour shifts. Every
recipe says "cut this window out of the source image, resize it to `crop_px`", so one DALI graph serves all of them, and
decoders read only what is needed. A window may reach beyond its image (`geometry.py`). All functions are vectorised
over samples; no stateful generator is used.
"""

from collections.abc import Callable

import numpy as np

from pipeline.data.geometry import Crops
from pipeline.rng import normal, uniform

# Eigenvalues and eigenvectors (columns) of the covariance of ImageNet's RGB pixels in 0..1, as published with
# github.com/facebookarchive/fb.resnet.torch (datasets/imagenet.lua); Krizhevsky et al. 2012, section 4.1.
IMAGENET_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
IMAGENET_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)  # rows R, G, B

# What a random number is for. Each use has a stream of its own, so adding one leaves the others as they were.
_Y, _X, _FLIP, _COLOUR, _SCALE, _AREA = 0, 1, 2, 3, 9, 16
_ATTEMPTS = 10  # of recipe inception
LONGEST = 16  # sides' ratio in evaluation


def alexnet(heights, widths, ids, seed, epoch, *, crop_px: int, resize_px: int, pca=None) -> Crops:
    """Krizhevsky et al. 2012, sections 2 and 4.1: the short side is scaled to `resize_px`, a random `crop_px` square is
    cut from the central `resize_px` square, flipped half of the time, with PCA colour noise."""
    side = np.minimum(heights, widths)
    window = np.maximum(1, np.rint(side * (crop_px / resize_px))).astype(np.int64)
    top = (heights - side) // 2 + _offset(uniform(seed, epoch, ids, _Y), side - window)
    left = (widths - side) // 2 + _offset(uniform(seed, epoch, ids, _X), side - window)
    return _windows(top, left, window, window, ids, seed, epoch, pca)


def vgg(heights, widths, ids, seed, epoch, *, crop_px: int, scale_px: tuple[int, int], pca=None) -> Crops:
    """Simonyan and Zisserman 2014, section 3.1: the short side is scaled to a random S in `scale_px` (inclusive), a
    random `crop_px` square is cut from the whole image, flipped half of the time, with the 2012 paper's RGB shift."""
    low, high = scale_px
    scale = low + np.floor(uniform(seed, epoch, ids, _SCALE) * (high - low + 1))
    side = np.minimum(heights, widths)
    window = np.clip(np.rint(side * (crop_px / scale)), 1, side).astype(np.int64)
    top = _offset(uniform(seed, epoch, ids, _Y), heights - window)
    left = _offset(uniform(seed, epoch, ids, _X), widths - window)
    return _windows(top, left, window, window, ids, seed, epoch, pca)


def inception(
    heights, widths, ids, seed, epoch, *, area: tuple[float, float], aspect: tuple[float, float], pca=None
) -> Crops:
    """Szegedy et al. 2014, section 6, as torchvision's RandomResizedCrop: a window of random area and aspect ratio
    anywhere in the image; the first of ten that fits, else the largest central one within the aspect range."""
    heights, widths = heights.astype(np.int64), widths.astype(np.int64)
    streams = range(_AREA, _AREA + 4 * _ATTEMPTS)
    random = uniform(seed, epoch, ids, streams).reshape(_ATTEMPTS, 4, -1)
    target = heights * widths * (area[0] + random[:, 0] * (area[1] - area[0]))
    log_low, log_high = np.log(aspect[0]), np.log(aspect[1])
    ratio = np.exp(log_low + random[:, 1] * (log_high - log_low))
    tall, wide = np.rint(np.sqrt(target / ratio)).astype(np.int64), np.rint(np.sqrt(target * ratio)).astype(np.int64)
    fits = (tall > 0) & (wide > 0) & (tall <= heights) & (wide <= widths)
    chosen = fits.argmax(axis=0), np.arange(len(ids))  # the first that fits

    ratio = np.clip(widths / heights, *aspect)  # of the one that is taken when none does
    none = ~fits.any(axis=0)
    window_h = np.where(none, np.clip(np.rint(widths / ratio), 1, heights), tall[chosen]).astype(np.int64)
    window_w = np.where(none, np.clip(np.rint(heights * ratio), 1, widths), wide[chosen]).astype(np.int64)
    rest_h, rest_w = heights - window_h, widths - window_w
    top = np.where(none, rest_h // 2, _offset(random[:, 2][chosen], rest_h))
    left = np.where(none, rest_w // 2, _offset(random[:, 3][chosen], rest_w))
    return _windows(top, left, window_h, window_w, ids, seed, epoch, pca)


def whole(heights, widths) -> Crops:
    """Evaluation: all of the image, unflipped. Views are cut from it when it is resized. Of an image that is longer
    than `LONGEST` times its short side the middle: a line of 1 x 20,000 px would else take gigabytes."""
    most = LONGEST * np.minimum(heights, widths).astype(np.int64)
    tall, wide = np.minimum(heights, most), np.minimum(widths, most)
    none = np.zeros(len(heights), bool), np.zeros((len(heights), 3), np.float32)
    return pack((heights - tall) // 2, (widths - wide) // 2, tall, wide, *none)


def pca_of(covariance) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors in columns of a 3 x 3 covariance of pixels in 0..1."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return values[::-1].copy(), vectors[:, ::-1].copy()


def colour_shift(seed: int, epoch: int, ids: np.ndarray, pca: tuple[np.ndarray, np.ndarray, float]) -> np.ndarray:
    """Float32 [n, 3] to add to pixels in 0..1: eigenvectors @ (alpha * eigenvalues), three alphas ~ N(0, std) per
    image. Krizhevsky et al. 2012, section 4.1, where std is 0.1."""
    values, vectors, std = pca
    alpha = np.stack([normal(seed, epoch, ids, _COLOUR + 2 * k) for k in range(3)], axis=1) * std
    return (alpha * values @ vectors.T).astype(np.float32)


def _offset(random: np.ndarray, room: np.ndarray) -> np.ndarray:
    return np.floor(random * (np.maximum(room, 0) + 1)).astype(np.int64)


def pack(top, left, height, width, flip, colour) -> Crops:
    """Crops of columns of any type."""
    top, left, height, width = (np.asarray(values, np.int32) for values in (top, left, height, width))
    return Crops(top, left, height, width, np.asarray(flip, bool), np.asarray(colour, np.float32))


def _windows(top, left, height, width, ids, seed, epoch, pca) -> Crops:
    flip = uniform(seed, epoch, ids, _FLIP) < 0.5
    colour = np.zeros((len(ids), 3), np.float32) if pca is None else colour_shift(seed, epoch, ids, pca)
    return pack(top, left, height, width, flip, colour)


Recipe = Callable[..., Crops]
# By data.recipe: the function, and the settings of section data that it takes by name; one of a user's own takes
# crop_px. All take `pca`.
RECIPES: dict[str, tuple[Recipe, tuple[str, ...]]] = {
    "alexnet": (alexnet, ("crop_px", "resize_px")),
    "vgg": (vgg, ("crop_px", "scale_px")),
    "inception": (inception, ("area", "aspect")),
}
