"""Which row an evaluation is compared with, and that a single network is not compared with an ensemble's."""

from pathlib import Path

import pytest

from pipeline.config_io import parse
from pipeline.evaluation.papers import ScoredWeights, compare

VGG_RECIPE = {"recipe": "vgg"}


def entry(name: str, weights: str = "model.safetensors", **data) -> ScoredWeights:
    views = {"corners": data.pop("corners")} if "corners" in data else {}
    return ScoredWeights(parse({"model": {"name": name}, "data": data, "evaluation": views}, "test"), Path(weights))


def sentence(view: str, *entries: ScoredWeights, images: int = 50_000, classes: int = 1000) -> str:
    return compare(view, entries, images, classes)


D, E = entry("vgg16", **VGG_RECIPE), entry("vgg19", **VGG_RECIPE)
PUBLISHED = entry("torchvision:alexnet", "alexnet-owt-7be5be79.pth")


@pytest.mark.parametrize(
    ("view", "entries", "row"),
    [
        ("ten", [entry("alexnet_2012")], "40.7 / 18.2 (Krizhevsky et al. 2012, table 2, 1 CNN, ten crops)"),
        ("ten", [entry("alexnet_2012")] * 5, "38.1 / 16.4 (Krizhevsky et al. 2012, table 2, 5 CNNs, ten crops)"),
        ("dense@384", [D], "25.6 / 8.1 (Simonyan and Zisserman 2014, table 3, dense, D, S=[256;512], Q=384)"),
        ("dense", [entry("vgg19", resize_px=384, **VGG_RECIPE)], "25.5 / 8.0 ("),
        ("dense", [entry("vgg11", scale_px=(256, 256), **VGG_RECIPE)], "29.6 / 10.4 ("),
        ("dense@224-256-288", [entry("vgg13", scale_px=(256, 256), **VGG_RECIPE)], "28.2 / 9.6 ("),
        ("dense@256-384-512", [D], "24.8 / 7.5 (Simonyan and Zisserman 2014, table 4, dense, D,"),
        ("150", [E], "24.6 / 7.4 (Simonyan and Zisserman 2014, table 5, 150, E,"),
        ("50@512-384-256", [entry("vgg16", **VGG_RECIPE)], "24.6 / 7.5 ("),
        ("150+dense@256-384-512", [entry("vgg19", **VGG_RECIPE)], "24.4 / 7.1 ("),
        ("dense@256-384-512+150", [D, E], "23.7 / 6.8 (Simonyan and Zisserman 2014, table 6, 150+dense, D + E,"),
        ("dense@256-384-512", [entry("vgg19", **VGG_RECIPE), entry("vgg16", **VGG_RECIPE)], "24.0 / 7.1 ("),
        ("centre", [PUBLISHED], "43.478 / 20.934 (torchvision's own figure for these weights)"),
        ("centre", [entry("vgg16", "vgg16-397923af.pth")], "28.408 / 9.618 (torchvision's own"),
        ("centre", [entry("alexnet")], "43.478 / 20.934 (torchvision's figure for its weights of this network)"),
        ("centre", [entry("vgg19_bn")], "25.782 / 8.158 (torchvision's figure"),
    ],
)  # fmt: skip
def test_rows(view, entries, row):
    assert sentence(view, *entries).startswith(row)


@pytest.mark.parametrize(
    ("view", "entries"),
    [
        ("centre", [entry("alexnet_2012")]),
        ("ten", [entry("alexnet_2012", corners="whole")]),
        ("ten", [entry("alexnet_2012", resize_px=288)]),
        ("ten", [entry("alexnet")]),
        ("dense@256", [entry("vgg16", **VGG_RECIPE)]),
        ("dense@384", [entry("vgg16")]),  # trained another way
        ("150+dense@384", [entry("vgg16", **VGG_RECIPE)]),  # scales that differ
        ("150+dense@256-384-512", [entry("vgg16", scale_px=(384, 384), **VGG_RECIPE)]),
        ("centre", [entry("alexnet", resize_px=232)]),
        ("centre", [entry("torchvision:alexnet", "alexnet-owt-7be5be79.pth", interpolation="bicubic")]),
        ("ten", [entry("alexnet_2012")] * 2),
        ("ten", [entry("alexnet_2012"), entry("vgg16")]),
        ("centre", [entry("package.module:factory")]),
    ],
)
def test_no_row(view, entries):
    assert sentence(view, *entries).startswith("none: no paper has this ")


def test_single_networks_are_told_which_figures_are_of_ensembles():
    assert sentence("ten", entry("alexnet_2012")).endswith("38.1 / 16.4, often quoted, is the average of five networks")
    for view in ("dense@384", "ten"):
        assert "23.7 / 6.8, often quoted, is the average of two networks" in sentence(
            view, entry("vgg16", **VGG_RECIPE)
        )
    assert "Do not compare it with rows of single networks" in sentence("ten", *[entry("alexnet_2012")] * 3)


@pytest.mark.parametrize(("images", "classes"), [(3925, 10), (50_000, 10), (49_999, 1000)])
def test_other_sets_have_no_row(images, classes):
    text = sentence("ten", entry("alexnet_2012"), images=images, classes=classes)
    assert text == "none: published numbers are of ILSVRC-2012 validation, 50,000 images of 1,000 classes"
