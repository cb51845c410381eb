"""Names and settings: what is built, what is refused in which words, and that refusing does not import torch."""

import subprocess
import sys

import pytest
import torch
import torchvision.models
from torch import nn

from models.build import SMALLEST_PX, TORCHVISION_DROPOUT, build, check_name, known_names, torchvision_names


@pytest.mark.parametrize("name", known_names())
def test_every_known_name_builds_and_answers(name):
    model = build(name, num_classes=7, width=0.125, dropout=0.25, image_px=64).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) == name.endswith("_bn")


def test_names_of_vgg_lead_to_their_depth():
    for name in known_names():
        if name.startswith("vgg"):
            with torch.device("meta"):
                model = build(name, num_classes=7, width=0.125)
            depth = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
            assert name.startswith(f"vgg{depth}")
            assert ("c" in name) == any(
                layer.kernel_size == (1, 1) for layer in model.features if hasattr(layer, "groups")
            )


def test_checking_names_and_settings_leaves_torch_alone():
    code = (
        "import sys, models, models.build as build\n"
        "build.check_name('vgg16_bn', {'dropout': 0.5}); build.check_name('torchvision:resnet50')\n"
        "build.check_name('json:loads', {'anything': 1})\n"
        "try:\n    build.check_name('vgg61')\nexcept ValueError: pass\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchvision_names_are_torchvisions():
    assert torchvision_names() == set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vgg61", {}, r"unknown model 'vgg61'. Did you mean .*vgg16.*Known are alexnet_2012"),
        ("resnet50", {}, "Did you mean torchvision:resnet50"),
        ("torchvision:resnet5", {}, "Did you mean torchvision:resnet50"),
        ("zzzz", {}, "unknown model 'zzzz'. Known are"),
        ("vgg16", {"groups": 2}, "model vgg16 has no setting groups; it has dropout, image_px, init, width"),
        ("alexnet", {"groups": 2, "init": "paper"}, "model alexnet has no setting groups, init"),
        ("alexnet_2012", {"init": "paper"}, "model alexnet_2012 has no setting init"),
        ("torchvision:vgg16", {"width": 0.5}, "model torchvision:vgg16 has no setting width; it has dropout, image_px"),
        ("torchvision:resnet18", {"dropout": 0.5}, "no setting dropout; it has image_px"),
        ("my package:net", {}, "written package.module:factory"),
        ("no_such_package.nets:small", {}, "there is no package no_such_package"),
    ],
)
def test_wrong_names_and_settings_are_told(name, settings, message):
    with pytest.raises(ValueError, match=message):
        check_name(name, settings)
    with pytest.raises(ValueError, match=message):
        build(name, num_classes=10, **settings)


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "vit_b_32", "swin_t", "googlenet"],
)
def test_torchvision_dropout(name):
    with torch.device("meta"):
        model = build(f"torchvision:{name}", num_classes=10, dropout=0.123)
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.123}


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5", "densenet121", "maxvit_t"])
def test_torchvision_without_dropout(name):
    # ConvNeXt, which has none either, swallows unknown keywords without a word.
    assert not TORCHVISION_DROPOUT.match(name)
    with pytest.raises(TypeError, match="dropout"):
        torchvision.models.get_model(name, weights=None, dropout=0.1)


@pytest.mark.parametrize(("name", "image_px"), [("googlenet", 64), ("resnet18", 64), ("vit_b_32", 64), ("swin_t", 64)])
def test_torchvision_networks_return_logits_in_training(name, image_px):
    model = build(f"torchvision:{name}", num_classes=10, image_px=image_px).train()
    assert model(torch.randn(2, 3, image_px, image_px)).shape == (2, 10)


@pytest.mark.parametrize(("name", "image_px"), [("inception_v3", 74), ("vit_b_32", 100), ("maxvit_t", 100)])
def test_torchvision_image_sizes_that_do_not_fit(name, image_px):
    with pytest.raises(ValueError, match=f"torchvision:{name}.*{image_px}"):
        build(f"torchvision:{name}", num_classes=10, image_px=image_px)


def test_a_factory_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, channels=4):\n"
        "    return nn.Sequential(nn.AvgPool2d(channels), nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def wrong(num_classes):\n    return 'no module'\n"
    )
    (tmp_path / "own_broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check_name("own_nets:small", {"channels": 2})
    assert build("own_nets:small", 5, channels=2)(torch.zeros(2, 3, 9, 9)).shape == (2, 5)
    for name, settings, message in (
        ("own_nets:small", {"widht": 2}, "own_nets:small cannot be called with num_classes, widht"),
        ("own_nets:missing", {}, "module own_nets has no function missing"),
        ("own_nets.deep:small", {}, "there is no module own_nets.deep"),
        ("own_nets:wrong", {}, "returned str, not an nn.Module"),
    ):
        with pytest.raises(ValueError, match=message):
            build(name, 5, **settings)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        build("own_broken:small", 5)


def test_number_of_classes():
    with pytest.raises(ValueError, match="num_classes is 0"):
        build("alexnet", num_classes=0)


@pytest.mark.parametrize("name", known_names())
def test_what_is_known_before_torch_is_what_the_networks_say(name):
    with torch.device("meta"):
        assert build(name, 2, width=0.125).smallest_px == SMALLEST_PX[name]
