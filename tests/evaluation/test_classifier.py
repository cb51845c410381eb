"""Any classifier: state dicts of torchvision and of others, published weights, exports; and every mistake is told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from models.build import build
from pipeline.errors import UserError
from pipeline.evaluation.classifier import read
from pipeline.evaluation.export import export


def same(first: torch.nn.Module, second: torch.nn.Module, px: int = 64) -> bool:
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.equal(first.eval()(images), second.eval()(images))


@pytest.fixture
def factory(tmp_path, monkeypatch) -> str:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "mynets:small"


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("squeezenet1_1", 1000), ("mobilenet_v3_small", 1000), ("mobilenet_v3_small", 12), ("alexnet", 12)],
)
def test_state_dict_of_torchvision(name, num_classes, tmp_path):
    theirs = get_model(name, weights=None, num_classes=num_classes)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    found = read(f"torchvision:{name}={tmp_path / 'w.pth'}", [])
    assert found.num_outputs == num_classes
    assert same(found.network, theirs)
    assert not found.network.training
    assert (found.classes is None) == (num_classes == 12)
    if num_classes == 1000:
        assert found.classes[1] == "goldfish"
    assert found.weights == tmp_path / "w.pth"


def test_number_of_outputs_may_be_told(tmp_path):
    torch.save(get_model("squeezenet1_1", weights=None, num_classes=12).state_dict(), tmp_path / "w.pth")
    source = f"torchvision:squeezenet1_1={tmp_path / 'w.pth'}"
    assert read(source, ["model.num_classes=12"]).num_outputs == 12
    with pytest.raises(UserError, match=r"classifier\.1\.weight is \(12, "):
        read(source, [])


@pytest.mark.parametrize(
    ("file", "resize_px", "interpolation"),
    [
        ("resnet50-0676ba61.pth", 256, "bilinear"),
        ("resnet50-11ad3fa6.pth", 232, "bilinear"),
        ("mine.pth", 232, "bilinear"),
    ],
)
def test_preprocessing_is_that_of_the_weights_with_this_name_else_of_the_newest(
    file, resize_px, interpolation, tmp_path
):
    torch.save(get_model("resnet50", weights=None).state_dict(), tmp_path / file)
    data = read(f"torchvision:resnet50={tmp_path / file}", []).config.data
    assert (data.resize_px, data.interpolation, data.crop_px) == (resize_px, interpolation, 224)
    assert read(f"torchvision:resnet50={tmp_path / file}", ["data.resize_px=288"]).config.data.resize_px == 288


def test_published_weights_bring_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth"
    file.parent.mkdir(parents=True)
    theirs = get_model("squeezenet1_1", weights=None)
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr("torch.hub.check_hash", lambda *_: True, raising=False)
    found = read("torchvision:squeezenet1_1", [])
    assert same(found.network, theirs)
    assert (found.weights, found.num_outputs, len(found.classes)) == (file, 1000, 1000)


def test_published_weights_out_of_reach(tmp_path, monkeypatch):
    from urllib.error import URLError

    def refuse(*arguments, **keywords):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(
        UserError, match=r"torchvision:vgg11: cannot fetch https://.*fetch it elsewhere and read the file"
    ):
        read("torchvision:vgg11", [])


def test_auxiliary_classifiers_are_left_out_and_pixels_scaled_as_the_networks_do_it(tmp_path):
    """torchvision's published googlenet turns images of ImageNet's mean and deviation into -1..1 by itself."""
    theirs = get_model("googlenet", weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "googlenet-1378be20.pth")
    found = read(f"torchvision:googlenet={tmp_path / 'googlenet-1378be20.pth'}", [])
    assert found.config.data.mean == found.config.data.std == (0.5,) * 3
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        torch.testing.assert_close(found.network((pixels - 0.5) / 0.5), theirs((pixels - mean) / std))


def test_names_of_2017_in_densenets_files(tmp_path):
    theirs = get_model("densenet121", weights=None, num_classes=3)
    old = {
        name.replace("norm1", "norm.1").replace("conv2", "conv.2"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert old.keys() != theirs.state_dict().keys()
    torch.save({name: tensor for name, tensor in old.items() if not name.endswith("tracked")}, tmp_path / "d.pth")
    assert same(read(f"torchvision:densenet121={tmp_path / 'd.pth'}", []).network, theirs)


def test_a_factory_of_your_own(factory, tmp_path):
    theirs = build(factory, 7)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    found = read(f"{factory}={tmp_path / 'w.safetensors'}", ["data.mean=[0,0,0]"])
    assert (found.num_outputs, found.classes, found.config.data.mean) == (7, None, (0, 0, 0))
    assert same(found.network, theirs)


def test_an_own_network_of_another_width(tmp_path):
    theirs = build("vgg16c", 5, width=0.125)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    assert same(read(f"vgg16c={tmp_path / 'w.pth'}", ["model.width=0.125"]).network, theirs)
    with pytest.raises(UserError, match="do not fit"):
        read(f"vgg16c={tmp_path / 'w.pth'}", [])


def test_an_export_is_read_by_plain_torch_and_by_us(tmp_path):
    theirs = get_model("vgg11", weights=None, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    first = read(f"vgg11={tmp_path / 'w.pth'}", ["data.resize_px=300", "data.interpolation=bicubic"])
    export(first, tmp_path / "out" / "net.safetensors")
    plain = get_model("vgg11", weights=None, num_classes=4)
    plain.load_state_dict(load_file(tmp_path / "out" / "net.safetensors"))
    assert same(plain, theirs)
    again = read(str(tmp_path / "out" / "net.safetensors"), [])
    assert same(again.network, theirs)
    assert again.config.data == first.config.data
    assert again.num_outputs == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["net.json", "net.safetensors"]


def test_an_exports_mistakes(tmp_path):
    alone = tmp_path / "net.safetensors"
    save_file({"a": torch.ones(1)}, alone)
    with pytest.raises(UserError, match=r"has no net\.json beside it.*torchvision:alexnet="):
        read(str(alone), [])
    for text in ("{", json.dumps({"config": {}}), json.dumps([])):
        (tmp_path / "net.json").write_text(text)
        with pytest.raises(UserError, match=r"net\.json was not written by launch\.export, or is damaged"):
            read(str(alone), [])


def test_pickled_code_is_not_run(tmp_path):
    class Mischief:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"features.0.weight": Mischief()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="code in it is not run"):
        read(f"alexnet={tmp_path / 'evil.pth'}", [])
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere", "nowhere does not exist. Give a run folder"),
        ("vgg16", "vgg16 is a network without weights. Name their file: vgg16=FILE"),
        ("torchvision:alxnet", "Did you mean torchvision:alexnet"),
        ("torchvision:vgg16c", "unknown model 'torchvision:vgg16c'"),
        ("vgg17=w.pth", "unknown model 'vgg17'. Did you mean"),
        ("vgg16=nowhere.pth", "there is no file nowhere.pth"),
        ("no.such.package:factory", "there is no package no"),
        ("no.such.package:factory=w.pth", "there is no package no"),
        ("wave:open", "wave:open is a network without weights"),
    ],
)
def test_sources_that_are_none(source, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read(source, [])
    assert reason in str(caught.value)
