"""Evaluation against a slow one in PIL and torchvision, an image at a time; and the same bits for every batch size."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import center_crop, five_crop, hflip, to_tensor

from models.build import build
from models.dense import Dense
from pipeline.config import Data
from pipeline.data import index
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import ScoredModel, evaluate
from pipeline.evaluation.outcomes import NO_CLASS, Outcomes

CROP, SCALE = 64, 72
DATA = Data(crop_px=CROP, resize_px=SCALE, threads=1, prefetch=1)


def network(seed: int, num_classes: int = 7, name: str = "vgg11_bn") -> nn.Module:
    """Random, but with different answers for different images."""
    torch.manual_seed(seed)
    built = build(name, num_classes, width=0.0625).eval()
    with torch.no_grad():
        list(built.modules())[-1].weight.mul_(30)
    return built


def run(runtime, folder, *networks: nn.Module, views, data: Data = DATA, micro_batch=8, corners="square") -> Outcomes:
    return evaluate(
        [ScoredModel(one, data, corners) for one in networks],
        index.load(folder),
        data,
        views,
        runtime=runtime,
        micro_batch=micro_batch,
        bf16=False,
    )


def resized(folder, sample: int, px: int) -> torch.Tensor:
    """The image as torchvision's Resize makes it of PIL's, normalised, [1, 3, height, width]."""
    encoded = bytes(Reader(index.load(folder)).read(np.array([sample]))[0])
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    short = min(image.size)
    size = tuple(px if side == short else int(px * side / short) for side in image.size)
    pixels = to_tensor(image.resize(size, Image.Resampling.BILINEAR))
    return ((pixels - torch.tensor(DATA.mean)[:, None, None]) / torch.tensor(DATA.std)[:, None, None])[None]


def grid(image: torch.Tensor) -> list[torch.Tensor]:
    steps = [[round(k * (side - CROP) / 4) for k in range(5)] for side in image.shape[2:]]
    return [image[:, :, y : y + CROP, x : x + CROP] for y in steps[0] for x in steps[1]]


def expected(folder, sample: int, view: str, one: nn.Module) -> torch.Tensor:
    """Mean softmax [classes] of a view, written out by hand."""

    def mean(crops):
        return torch.stack([one(crop).softmax(dim=1)[0] for crop in crops]).mean(dim=0)

    image, whole = resized(folder, sample, SCALE), lambda px: resized(folder, sample, px)
    dense = Dense(one, CROP)

    def densely(px):
        return torch.stack([dense(i).mean(dim=(2, 3)).softmax(dim=1)[0] for i in (whole(px), hflip(whole(px)))]).mean(0)

    def fifty(px):
        return mean([*grid(whole(px)), *(hflip(crop) for crop in grid(whole(px)))])

    square = five_crop(center_crop(image, [SCALE, SCALE]), [CROP, CROP])
    return {
        "centre": lambda: mean([center_crop(image, [CROP, CROP])]),
        "five": lambda: mean(square),
        "ten": lambda: mean([*square, *map(hflip, square)]),
        "50": lambda: fifty(SCALE),
        "150@64-72-90": lambda: (fifty(64) + fifty(72) + fifty(90)) / 3,
        "dense": lambda: densely(SCALE),
        "dense@64-90": lambda: (densely(64) + densely(90)) / 2,
        "50+dense@90": lambda: (fifty(SCALE) + densely(90)) / 2,
    }[view]()


VIEWS = ["centre", "five", "ten", "50", "150@64-72-90", "dense", "dense@64-90", "50+dense@90"]


@pytest.fixture(scope="module")
def outcomes(alone, held_out) -> Outcomes:
    return run(alone, held_out, network(0), views=VIEWS)


@torch.inference_mode()
def test_probabilities_are_those_of_pil_and_torchvision(outcomes, held_out):
    """Within 0.004, since a pixel may differ by a level of 255; the network's answers differ by far more."""
    one = network(0)
    for view in VIEWS:
        found = outcomes.views[view]
        worst = 0.0
        for sample in range(0, 23, 4):
            wanted = expected(held_out, sample, view, one)
            assert found.classes[sample].tolist() == wanted.topk(5).indices.tolist()
            worst = max(worst, np.abs(found.probabilities[sample] - wanted.topk(5).values.numpy()).max())
            label = outcomes.labels[sample]
            worst = max(worst, abs(found.label_probability[sample] - float(wanted[label])))
        assert worst < 4e-3, view
    assert len({tuple(row) for row in outcomes.views["centre"].classes.tolist()}) > 3


@torch.inference_mode()
def test_an_ensemble_averages_probabilities(alone, held_out):
    """Of networks that want different images: each has its own preprocessing."""
    first, second = network(1), network(2)
    other = DATA.model_copy(update={"mean": (0.5,) * 3, "std": (0.3,) * 3, "resize_px": 80, "interpolation": "bicubic"})
    scored_models = [ScoredModel(first, DATA, "square"), ScoredModel(second, other, "square")]
    how = {"runtime": alone, "micro_batch": 5, "bf16": False}
    both = evaluate(scored_models, index.load(held_out), DATA, ["ten"], **how).views["ten"]
    each = [evaluate([one], index.load(held_out), DATA, ["ten"], **how).views["ten"] for one in scored_models]
    wanted = np.mean([one.label_probability for one in each], axis=0)
    np.testing.assert_allclose(both.label_probability, wanted, rtol=1e-5)
    assert not np.allclose(each[0].label_probability, each[1].label_probability, atol=0.01)


@pytest.mark.parametrize("micro_batch", [1, 3, 23, 64])
def test_the_bits_do_not_depend_on_the_batch(outcomes, alone, held_out, micro_batch):
    again = run(alone, held_out, network(0), views=VIEWS, micro_batch=micro_batch)
    for view in VIEWS:
        for name in ("classes", "probabilities", "label_probability"):
            assert np.array_equal(getattr(again.views[view], name), getattr(outcomes.views[view], name)), (view, name)
    assert again.scores() == outcomes.scores()


@pytest.mark.parametrize("name", ["alexnet", pytest.param("vgg11_bn", marks=pytest.mark.slow)])
def test_the_bits_do_not_depend_on_threads(alone, held_out, name):
    """One process uses all cores, one of several a core: so this is part of "any number of ranks"."""
    before, found = torch.get_num_threads(), []
    torch.manual_seed(0)
    one = build(name, 7, width=0.5).eval()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(alone, held_out, one, views=["ten", "dense", "dense@150"]).views)
    finally:
        torch.set_num_threads(before)
    for view in found[0]:
        for other in found[1:]:
            assert np.array_equal(other[view].probabilities, found[0][view].probabilities), view


def test_a_view_does_not_depend_on_the_others(outcomes, alone, held_out):
    for view in ("ten", "dense@64-90"):
        only = run(alone, held_out, network(0), views=[view])
        assert np.array_equal(only.views[view].probabilities, outcomes.views[view].probabilities)


def test_dense_is_the_centre_crop_where_the_image_is_the_crop(alone, make_set):
    square = make_set("square", 6, size_px=(64, 65))
    found = run(alone, square, network(0), views=["centre", "dense@64"], data=DATA.model_copy(update={"resize_px": 64}))
    np.testing.assert_allclose(
        found.views["dense@64"].label_probability, found.views["centre"].label_probability, rtol=0.2
    )
    unmirrored = run(alone, square, _Symmetric(network(0)), views=["centre"], data=DATA)
    assert unmirrored.scored.all()


class _Symmetric(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return (self.inner(images) + self.inner(images.flip(3))) / 2


def test_corners_of_the_whole_image_are_others(alone, held_out):
    square = run(alone, held_out, network(0), views=["ten", "50"])
    whole = run(alone, held_out, network(0), views=["ten", "50"], corners="whole")
    assert not np.allclose(square.views["ten"].probabilities, whole.views["ten"].probabilities, atol=1e-4)
    assert np.array_equal(square.views["50"].probabilities, whole.views["50"].probabilities)


def test_images_that_cannot_be_decoded_are_in_no_score(alone, make_set):
    found = run(alone, make_set("rotten", 12, broken=[2, 7]), network(0), views=["ten"])
    assert np.flatnonzero(~found.scored).tolist() == [2, 7]
    assert (found.views["ten"].classes[[2, 7]] == NO_CLASS).all()
    assert found.scores()["ten"].seen == 10


def test_a_network_that_answers_nan_is_wrong_everywhere(alone, held_out):
    broken = network(0)
    with torch.no_grad():
        list(broken.modules())[-1].bias[3] = float("nan")
    score = run(alone, held_out, broken, views=["centre"]).scores()["centre"]
    assert (score.seen, score.correct1, score.correct5) == (23, 0, 0)
    assert np.isnan(score.loss)


def test_nan_in_a_dense_view(alone, held_out):
    broken = network(0)
    with torch.no_grad():
        list(broken.modules())[-1].bias[3] = float("nan")
    assert run(alone, held_out, broken, views=["dense"]).scores()["dense"].correct5 == 0


def test_a_line_of_pixels_takes_no_gigabytes(alone, make_set):
    """1 x 3,000 px at 72 px would be 216,000 px long; the middle 16 px are scored."""
    found = run(alone, make_set("lines", 4, size_px=(1, 2), num_shards=1), network(0), views=["dense", "50"])
    assert found.scored.all()
    from pipeline.data.crops import whole

    window = whole(np.array([1, 500]), np.array([3000, 1]))
    assert (window.height.tolist(), window.width.tolist()) == ([1, 16], [16, 1])
    assert (window.top.tolist(), window.left.tolist()) == ([0, 242], [1492, 0])


def test_fewer_than_five_classes(alone, make_set):
    found = run(alone, make_set("few", 9, num_classes=3), network(0, num_classes=3), views=["centre"])
    assert (found.views["centre"].classes[:, 3:] == NO_CLASS).all()
    assert found.scores()["centre"].correct5 is None


def test_labels_may_be_other_outputs_than_the_sets_numbers(alone, held_out):
    labels = index.load(held_out).label.astype(np.int64)
    moved = np.array([6, 5, 4, 3, 2])[labels]
    how = {"runtime": alone, "micro_batch": 8, "bf16": False}
    found = evaluate(
        [ScoredModel(network(0), DATA, "square")], index.load(held_out), DATA, ["centre"], labels=moved, **how
    )
    plain = run(alone, held_out, network(0), views=["centre"])
    assert np.array_equal(found.views["centre"].classes, plain.views["centre"].classes)
    wanted = (plain.views["centre"].classes[:, 0] == moved).sum()
    assert found.scores()["centre"].correct1 == wanted


def test_a_network_without_a_dense_form_is_told(alone, held_out):
    with pytest.raises(UserError, match=r"view dense: ResNet has no dense form.*Leave the dense views out"):
        run(alone, held_out, build("torchvision:resnet18", 5).eval(), views=["dense"])


def test_raw_pixels_score_as_the_same_photos(alone, make_set):
    raw = run(alone, make_set("raw", 10, raw=True), network(0), views=["ten", "dense"])
    jpeg = run(alone, make_set("jpeg", 10), network(0), views=["ten", "dense"])
    for view in ("ten", "dense"):
        np.testing.assert_allclose(raw.views[view].label_probability, jpeg.views[view].label_probability, rtol=0.2)
