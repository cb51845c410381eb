"""Draws a small data set by code: ten shapes, as JPEG files in OUT/train/<class>/ and OUT/validation/<class>/.

Only the outline tells the class. Every shape covers the same area, and everything else (colours, fill, background,
scale, rotation, stretch, mirroring, place, noise, size and quality of the JPEG) is drawn without looking at the class.
Each image has its own random stream, seeded with (seed, split, number): the bytes depend on neither the number of
processes nor the number of images; they do on the versions of Pillow and NumPy. Run it: `python -m launch.draw OUT`.
"""

import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import UserError

STAMP = "drawn.json"  # holds the options that the folder was drawn with; written last
SPLITS = ("train", "validation")
SUPERSAMPLE = 3  # drawn this much larger, then averaged down: smooth edges
SHORT_SIDE_PX = (96, 200)
MAX_ASPECT = 1.6
OBJECT_SIZE = (0.34, 0.52)  # square root of the object's area, in short sides
MARK_SIZE = (0.03, 0.09)  # the same for the small distracting shapes
MAX_MARKS = 6
MAX_ROTATION = math.radians(20)
MAX_STRETCH = 1.2
MIN_CONTRAST = 100.0  # between object and background, mean over channels of the absolute difference, of 255
MAX_NOISE = 10.0  # standard deviation, of 255
QUALITY = (60, 95)

Array = NDArray[np.float64]  # an outline, (points, 2), or a colour, (3,), 0..255


@dataclass(frozen=True)
class Drawing:
    """What decides every byte of the data set; two folders with equal options hold equal files."""

    train: int = 2500
    validation: int = 500
    seed: int = 0
    version: int = 1  # raise it when the drawing changes


def _polar(radii: list[float], start_degrees: float = -90) -> Array:
    angles = np.radians(start_degrees) + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)[:, None]


def _arc(radius: float, start_degrees: float, stop_degrees: float, centre_x: float = 0) -> Array:
    angles = np.radians(np.linspace(start_degrees, stop_degrees, 48))
    return np.stack([centre_x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _heart() -> Array:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


def _normalised(points: Array) -> Array:
    """Moves the centroid to the origin and scales to area 1, so that no class is larger than another."""
    x, y = points.T
    x2, y2 = np.roll(points, -1, axis=0).T
    cross = x * y2 - x2 * y
    area = cross.sum() / 2
    centroid = np.array([((x + x2) * cross).sum(), ((y + y2) * cross).sum()]) / (6 * area)
    return (points - centroid) / math.sqrt(abs(area))


_PLUS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_ARROW = [(0, -4), (3, 0), (1.2, 0), (1.2, 4), (-1.2, 4), (-1.2, 0), (-3, 0)]
_HOURGLASS = [(-1, -1.3), (1, -1.3), (0.15, 0), (1, 1.3), (-1, 1.3), (-0.15, 0)]
SHAPES: dict[str, Array] = {  # y grows downwards
    "arrow": _normalised(np.array(_ARROW, float)),
    "crescent": _normalised(np.concatenate([_arc(1, 58.2, 301.8), _arc(0.85, 271.9, 88.1, 0.5)])),
    "cross": _normalised(np.array(_PLUS, float)),
    "disk": _normalised(_arc(1, 0, 352.5)),
    "heart": _normalised(_heart()),
    "hourglass": _normalised(np.array(_HOURGLASS, float)),
    "ring": _normalised(np.concatenate([_arc(1, 0, 360), _arc(0.55, 360, 0)])),  # one outline: out, across, back
    "square": _normalised(_polar([1.0] * 4, 45)),
    "star": _normalised(_polar([1.0, 0.42] * 5)),
    "triangle": _normalised(_polar([1.0] * 3)),
}
CLASSES = tuple(SHAPES)


def _placed(rng: np.random.Generator, shape: Array, size_px: float) -> Array:
    """The outline mirrored or not, stretched, rotated, and scaled to an area of `size_px` squared; at the origin."""
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH) / 2)
    mirror = rng.choice((-1, 1))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (shape * (mirror * stretch, 1 / stretch)) @ turn * size_px


def _painted(rng: np.random.Generator, height: int, width: int, first: Array, second: Array) -> Image.Image:
    """A surface between two colours: plain, gradient, stripes or blotches."""
    kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == 0:
        mix = np.zeros((height, width))
    elif kind == 1:
        mix = (along - along.min()) / (along.max() - along.min())
    elif kind == 2:
        mix = np.clip(0.5 + 2 * np.sin(along * 2 * np.pi * rng.uniform(2, 9)), 0, 1)
    else:
        cells = Image.fromarray(rng.integers(0, 256, (rng.integers(3, 12), rng.integers(3, 12)), dtype=np.uint8))
        mix = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC)) / 255.0
    pixels = first + mix[..., None] * (second - first)
    large = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    return Image.fromarray(pixels.astype(np.uint8)).resize(large, Image.Resampling.NEAREST)


def _colours(rng: np.random.Generator, unlike: tuple[Array, ...] = ()) -> tuple[Array, Array]:
    """Two related colours, both in clear contrast to each of `unlike`: at least one corner of the cube always is."""
    while True:
        first = rng.uniform(0, 255, 3)
        second = np.clip(first + rng.uniform(-45, 45, 3), 0, 255)
        if all(np.abs(mine - other).mean() >= MIN_CONTRAST for mine in (first, second) for other in unlike):
            return first, second


def draw_image(rng: np.random.Generator, label: int) -> tuple[Image.Image, int]:
    """One picture of class `label` and the JPEG quality to store it with."""
    short = int(rng.integers(SHORT_SIDE_PX[0], SHORT_SIDE_PX[1] + 1))
    long = int(short * rng.uniform(1, MAX_ASPECT))
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    background = _colours(rng)
    canvas = _painted(rng, height, width, *background)
    pen = ImageDraw.Draw(canvas)

    for _ in range(rng.integers(MAX_MARKS + 1)):
        mark = _placed(rng, SHAPES[CLASSES[rng.integers(len(CLASSES))]], rng.uniform(*MARK_SIZE) * short)
        points = (mark + rng.uniform(0, 1, 2) * (width, height)) * SUPERSAMPLE
        pen.polygon([tuple(point) for point in points], fill=tuple(int(c) for c in rng.uniform(0, 256, 3)))

    outline = _placed(rng, SHAPES[CLASSES[label]], rng.uniform(*OBJECT_SIZE) * short)
    low, high = outline.min(axis=0), outline.max(axis=0)
    margin = np.maximum(0, short - (high - low)) / 2  # anywhere in the centre square, as a whole
    centre = np.array([width, height]) / 2 - (low + high) / 2 + rng.uniform(-1, 1, 2) * margin
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon([tuple(point) for point in (outline + centre) * SUPERSAMPLE], fill=255)
    canvas.paste(_painted(rng, height, width, *_colours(rng, background)), mask=mask)

    pixels = np.asarray(canvas.reduce(SUPERSAMPLE), np.float64)
    pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * rng.uniform(0, MAX_NOISE)
    quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1))
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8)), quality


def _draw_some(folder: Path, split: int, seed: int, numbers: range) -> None:
    for number in numbers:
        name = CLASSES[number % len(CLASSES)]
        image, quality = draw_image(np.random.default_rng([seed, split, number]), number % len(CLASSES))
        image.save(folder / SPLITS[split] / name / f"{name}_{number:06d}.jpg", quality=quality)


def draw(out: Path, drawing: Drawing, workers: int | None = None, log: Callable[[str], None] = print) -> None:
    """Draws the data set into `out`, which appears only when it is complete; a finished one is left as it is.

    Raises UserError if a number is too small (each class needs an image), or if `out` holds anything else.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    least = {"train": len(CLASSES), "validation": len(CLASSES), "seed": 0, "workers": 1}
    for option, value in {**asdict(drawing), "workers": workers}.items():
        if value < least.get(option, 0):
            raise UserError(f"--{option} is {value}; give at least {least[option]}")
    stamp = json.dumps(asdict(drawing) | {"classes": CLASSES}, indent=2) + "\n"
    if out.exists():
        if (out / STAMP).is_file() and (out / STAMP).read_text() == stamp:
            return log(f"{out} is already drawn with these options")
        raise UserError(f"{out} exists and was not drawn with these options; remove it or choose another folder")

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # what an interrupted run left
    jobs = []
    for index, total in enumerate((drawing.train, drawing.validation)):
        for name in CLASSES:
            (part / SPLITS[index] / name).mkdir(parents=True)
        jobs += [(part, index, drawing.seed, range(i, min(i + 100, total))) for i in range(0, total, 100)]
    if workers == 1:
        for job in jobs:
            _draw_some(*job)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_draw_some, *zip(*jobs, strict=True)))
    (part / STAMP).write_text(stamp)
    part.rename(out)
    log(f"{drawing.train + drawing.validation} images of {len(CLASSES)} classes in {out}")
