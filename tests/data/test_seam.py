"""From the config to the pixels that the network gets, against a loop over Pillow's pictures in plain NumPy.

Every setting has another value than its default, so that one which is dropped, or takes another's place, is seen.
"""

import io

import numpy as np
import pytest
import torch
from conftest import photo, write_tar
from PIL import Image

from pipeline.config import Data
from pipeline.data import crops, index
from pipeline.data.loader import order_of, train_batches
from pipeline.packing import indexing
from pipeline.packing.scan import scan_shard
from pipeline.runtime import RankInfo

PX, SEED, BATCH = 20, 5, 8
MEAN, STD, PCA_STD = (0.1, 0.5, 0.8), (0.3, 0.15, 0.6), 0.4
COVARIANCE = [[0.09, 0.02, 0.01], [0.02, 0.05, 0.015], [0.01, 0.015, 0.07]]  # of the set, made up
# github.com/facebookarchive/fb.resnet.torch, datasets/imagenet.lua
OF_IMAGENET = (
    np.array([0.2175, 0.0188, 0.0045]),
    np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]),
)
RECIPES = {
    "alexnet": (crops.alexnet, {"crop_px": PX, "resize_px": 31}),
    "vgg": (crops.vgg, {"crop_px": PX, "scale_px": (24, 40)}),
    "inception": (crops.inception, {"area": (0.3, 0.5), "aspect": (0.4, 0.7)}),
}


@pytest.fixture(scope="module")
def png_set(tmp_path_factory):
    """24 photos without loss, of several sizes."""
    folder = tmp_path_factory.mktemp("png") / "train"
    folder.mkdir()
    for shard in range(2):
        members = []
        for number in range(12 * shard, 12 * shard + 12):
            stream = io.BytesIO()
            Image.fromarray(photo(number, number % 5, 40 + number, 70 - number)).save(stream, "PNG")
            members += [(f"{number:02}.png", stream.getvalue()), (f"{number:02}.cls", str(number % 5).encode())]
        write_tar(folder / f"{shard}.tar", members)
    scanned = [scan_shard(path) for path in sorted(folder.glob("*.tar"))]
    rgb = {"mean": [0.4, 0.5, 0.6], "covariance": COVARIANCE}
    indexing.write(folder, scanned, [str(label) for label in range(5)], rgb=rgb)
    return folder


def weights(size: int, kind: str) -> np.ndarray:
    """[PX, size]: how much of each source row is in each row of the result, without antialiasing: bilinear, or bicubic
    with Keys's a = -0.75, as torch has it; beyond the border the border is repeated."""
    taken = np.zeros((PX, size))
    for row in range(PX):
        at = (row + 0.5) * size / PX - 0.5
        if kind == "bilinear":
            at = max(at, 0)
        low = int(np.floor(at))
        for neighbour in range(low - 1, low + 3):
            distance, a = abs(at - neighbour), -0.75
            if kind == "bilinear":
                weight = max(0.0, 1 - distance)
            elif distance <= 1:
                weight = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
            else:
                weight = max(0, distance < 2) * (a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a)
            taken[row, min(max(neighbour, 0), size - 1)] += weight
    return taken


def resized(picture: Image.Image, box: tuple[int, int, int, int], kind: str, antialias: bool) -> np.ndarray:
    """The window [PX, PX, 3] in 0..255."""
    window = picture.crop(box)
    if antialias:
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        return np.asarray(window.resize((PX, PX), filters[kind]), np.float64)
    pixels = np.asarray(window, np.float64)
    rows, columns = weights(pixels.shape[0], kind), weights(pixels.shape[1], kind)
    return np.clip(np.einsum("yh,hwc,xw->yxc", rows, pixels, columns), 0, 255)


@pytest.mark.parametrize("pca", ["imagenet", "shards"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_training_batches_are_pillows(png_set, recipe, interpolation, antialias, pca):
    choose, settings = RECIPES[recipe]
    tree = {"recipe": recipe, "crop_px": PX, "resize_px": 31, "threads": 2, **settings}
    tree |= {"interpolation": interpolation, "antialias": antialias, "mean": MEAN, "std": STD}
    data = Data(**tree, pca_std=PCA_STD, pca=pca)
    found = index.load(png_set)
    order = order_of(found, data, BATCH, SEED)
    how = {"rank_info": RankInfo(0, 1, 0, 1), "device": torch.device("cpu"), "micro_steps": 2}
    batches = train_batches(found, data, order, steps=range(2, 5), **how)
    if pca == "imagenet":
        values, vectors = OF_IMAGENET
    else:
        values, vectors = np.linalg.eigh(COVARIANCE)
        values, vectors = values[::-1], vectors[:, ::-1]
    for number, batch in enumerate(batches):
        step = 2 + number // 2
        ids = order.batch(step)[BATCH // 2 * (number % 2) :][: BATCH // 2]
        assert batch.ids.tolist() == ids.tolist()
        assert batch.targets.tolist() == [sample % 5 for sample in ids]
        seen = choose(
            found.height[ids],
            found.width[ids],
            ids,
            SEED,
            step * BATCH // 24,
            pca=(values, vectors, PCA_STD),
            **settings,
        )
        for row, sample in enumerate(ids.tolist()):
            picture = Image.fromarray(photo(sample, sample % 5, 40 + sample, 70 - sample))
            top, left = int(seen.top[row]), int(seen.left[row])
            box = (left, top, left + int(seen.width[row]), top + int(seen.height[row]))
            pixels = resized(picture, box, interpolation, antialias)
            pixels = pixels[:, ::-1] if seen.flip[row] else pixels
            expected = (pixels / 255 + seen.colour[row] - MEAN) / STD
            levels = np.abs(batch.images[row].permute(1, 2, 0).numpy() - expected) * STD * 255
            assert levels.max() <= (1.01 if interpolation == "bilinear" else 2.01), (step, row)  # rounded twice
    assert number == 5


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_setting_of_a_recipe_changes_what_is_seen(png_set, recipe):
    """That the test above can fail: each setting alone changes the windows."""
    choose, settings = RECIPES[recipe]
    found, ids = index.load(png_set), np.arange(24)
    others = {"crop_px": 18, "resize_px": 40, "scale_px": (50, 60), "area": (0.1, 0.2), "aspect": (1, 2)}
    for name in settings:
        both = [
            choose(found.height, found.width, ids, SEED, 0, **chosen)
            for chosen in (settings, settings | {name: others[name]})
        ]
        assert not np.array_equal(both[0].height, both[1].height), name
