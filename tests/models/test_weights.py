"""Weights: strict loading, fine-tuning, torchvision both ways, files that hold more than tensors."""

import argparse
from urllib.error import URLError

import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn

from models.build import GROWS_FROM, build
from models.weights import grow, load_weights, read_weights, to_torchvision, torchvision_weights


def small(num_classes=10, name="alexnet", width=0.125):
    return build(name, num_classes=num_classes, width=width)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_load_copies_everything():
    model, other = small(), small()
    load_weights(model, other.state_dict())
    assert same(model.state_dict(), other.state_dict())


def test_another_number_of_classes_is_named_as_such():
    model = small(num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="the checkpoint has 1000 classes, the model 10; reset_head=True") as caught:
        load_weights(model, small(num_classes=1000).state_dict())
    assert "classifier.6.weight is (1000, 512) in the checkpoint and (10, 512) in the model" in str(caught.value)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_reset_head_keeps_a_fresh_last_layer(num_classes):
    model, checkpoint = small(num_classes=10), small(num_classes).state_dict()
    fresh = model.classifier[-1].weight.clone()
    load_weights(model, checkpoint, reset_head=True)
    assert torch.equal(model.classifier[-1].weight, fresh)
    assert torch.equal(model.classifier[4].weight, checkpoint["classifier.4.weight"])


def test_reset_head_forgives_nothing_else():
    with pytest.raises(ValueError, match=r"features.0.weight is \(16, 3, 11, 11\) .* and \(8, 3, 11, 11\)") as caught:
        load_weights(small(), small(num_classes=5, width=0.25).state_dict(), reset_head=True)
    assert "classifier.6" not in str(caught.value)
    with pytest.raises(ValueError, match="has no Linear"):
        load_weights(nn.Sequential(nn.Conv2d(3, 4, 1)), {}, reset_head=True)


def test_missing_and_unknown_parameters_are_named():
    checkpoint = small().state_dict()
    checkpoint["features.1.scale"] = checkpoint.pop("features.0.bias")
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        load_weights(small(), checkpoint)
    assert "features.0.bias (8) is missing in the checkpoint" in str(caught.value)
    assert "features.1.scale (8) is unknown to the model" in str(caught.value)


def test_a_wholly_different_network_is_told_in_few_lines():
    with pytest.raises(ValueError, match=r"and \d+ more") as caught:
        load_weights(small(), small(name="vgg19_bn").state_dict())
    assert len(str(caught.value).splitlines()) < 12


def test_batch_norm_weights_without_the_batch_counter_load():
    model, checkpoint = small(name="vgg11_bn"), small(name="vgg11_bn").state_dict()
    old = {name: tensor for name, tensor in checkpoint.items() if not name.endswith("num_batches_tracked")}
    load_weights(model, old)
    assert same(model.state_dict(), checkpoint)


# Growing: what VGG A gives to a deeper VGG. Layers counted by hand, of the deeper one and of A.
CONVOLUTIONS = {"": {0: 0, 5: 3, 10: 6, 12: 8}, "_bn": {0: 0, 7: 4, 14: 8, 17: 11}}
NORMALISATIONS = {"": {}, "_bn": {1: 1, 8: 5, 15: 9, 18: 12}}
OF_NORMALISATION = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def taken_from_a(suffix: str) -> dict[str, str]:
    """The tensors that a deeper VGG takes from A, with A's names of them."""
    taken = {name: name for layer in (0, 3, 6) for name in (f"classifier.{layer}.weight", f"classifier.{layer}.bias")}
    for layers, kinds in ((CONVOLUTIONS[suffix], ("weight", "bias")), (NORMALISATIONS[suffix], OF_NORMALISATION)):
        taken |= {f"features.{ours}.{kind}": f"features.{layers[ours]}.{kind}" for ours in layers for kind in kinds}
    return taken


@pytest.mark.parametrize("name", ["vgg13", "vgg16c", "vgg16", "vgg19", "vgg13_bn", "vgg16c_bn", "vgg16_bn", "vgg19_bn"])
def test_growing_takes_just_these_layers_from_a(name):
    suffix = "_bn" if name.endswith("_bn") else ""
    shallow = small(name=f"vgg11{suffix}").state_dict()
    marked = {key: torch.full_like(tensor, 1 + number) for number, (key, tensor) in enumerate(shallow.items())}
    torch.manual_seed(7)
    fresh = small(name=name).state_dict()
    torch.manual_seed(7)
    model = small(name=name)
    grow(model, marked)
    taken, grown = taken_from_a(suffix), model.state_dict()
    assert len(taken) == (34 if suffix else 14)
    for key, tensor in grown.items():
        assert torch.equal(tensor, marked[taken[key]] if key in taken else fresh[key]), key
    assert all(weight.requires_grad for weight in model.parameters())  # "allowing them to change during learning"


def test_growing_is_for_all_but_a():
    names = ["vgg13", "vgg16c", "vgg16", "vgg19"]
    expected = dict.fromkeys(names, "vgg11") | {f"{name}_bn": "vgg11_bn" for name in names}
    assert expected == GROWS_FROM


@pytest.mark.parametrize(
    ("name", "shallow", "message"),
    [
        ("vgg13", {"num_classes": 3}, "the checkpoint has 3 classes, the VGG A that is needed 10"),
        (
            "vgg13",
            {"width": 0.25},
            r"features.0.weight is \(16, 3, 3, 3\) in the checkpoint and \(8, 3, 3, 3\) in the VGG A",
        ),
        ("vgg13", {"name": "vgg11_bn"}, "the checkpoint has batch normalisation, the model has not"),
        ("vgg13_bn", {"name": "vgg11"}, "the model has batch normalisation, the checkpoint has not"),
        ("vgg13", {"name": "vgg13"}, r"features.3.weight \(16, 8, 3, 3\) is missing in the checkpoint"),
        (
            "vgg16_bn",
            {"name": "vgg13_bn"},
            r"features.4.weight is \(8\) in the checkpoint and \(16, 8, 3, 3\) in the VGG A",
        ),
        ("vgg13", {"name": "alexnet"}, r"features.0.weight is \(8, 3, 11, 11\) in the checkpoint"),
    ],
)
def test_growing_from_what_does_not_fit(name, shallow, message):
    model = small(name=name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        grow(model, small(**({"name": "vgg11"} | shallow)).state_dict())
    assert "reset_head" not in str(caught.value)  # which is no setting of this
    assert same(model.state_dict(), before)


def test_growing_from_batch_norm_without_the_batch_counter():
    shallow = small(name="vgg11_bn").state_dict()
    model = small(name="vgg13_bn")
    grow(model, {key: tensor for key, tensor in shallow.items() if not key.endswith("num_batches_tracked")})
    assert torch.equal(model.state_dict()["features.18.running_var"], shallow["features.12.running_var"])


# To and from torchvision


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_to_torchvision_fits_torchvision(name):
    with torch.device("meta"):
        weights = to_torchvision(build(name, num_classes=10), name)
        theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
        theirs.load_state_dict(weights, strict=True, assign=True)


def test_to_torchvision_of_a_network_that_meta_cannot_build():
    model = build("torchvision:regnet_y_400mf", num_classes=10)
    assert same(to_torchvision(model, "torchvision:regnet_y_400mf"), model.state_dict())


@pytest.mark.parametrize(
    ("ours", "name", "message"),
    [
        (
            "alexnet_2012",
            "alexnet",
            r"features.0.weight is \(96, 3, 11, 11\) in this model and \(64, 3, 11, 11\) in tor",
        ),
        ("alexnet_2012", "alexnet_2012", "torchvision has no alexnet_2012"),
        ("vgg16c", "vgg16c", "torchvision has no vgg16c"),
        ("vgg16", "vgg61", "unknown model 'vgg61'. Did you mean"),
    ],
)
def test_to_torchvision_says_what_differs(ours, name, message):
    with torch.device("meta"):
        model = build(ours, num_classes=10)
    with pytest.raises(ValueError, match=message):
        to_torchvision(model, name)


def test_published_weights_come_from_torchs_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save({"kept": torch.ones(2)}, tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    assert same(torchvision_weights("alexnet"), {"kept": torch.ones(2)})


def test_published_weights_out_of_reach_give_their_address(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(OSError, match=r"cannot fetch https://.*vgg11.*no network"):
        torchvision_weights("vgg11")


@pytest.mark.parametrize("name", ["alexnet_2012", "vgg16c_bn"])
def test_networks_without_published_weights(name):
    with pytest.raises(ValueError, match=f"torchvision has no {name}"):
        torchvision_weights(name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()},
    ],
    ids=["plain", "timm", "distributed", "compiled"],
)
def test_torch_files_are_read_through_their_wrappers(tmp_path, wrap):
    weights = small().state_dict()
    torch.save(wrap(weights), tmp_path / "weights.pth")
    assert same(read_weights(tmp_path / "weights.pth"), dict(weights))


def test_safetensors_are_read(tmp_path):
    weights = small().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    assert same(read_weights(tmp_path / "weights.safetensors"), dict(weights))


def test_files_that_are_refused(tmp_path):
    torch.save({"model": {}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "code.pth")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "progress.pth")
    (tmp_path / "garbage.pth").write_bytes(b"not a torch file")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "garbage.safetensors").write_bytes(b"not a safetensors file")
    for name, message in (
        ("code.pth", "code in it is not run"),
        ("progress.pth", "holds no state dict"),
        ("garbage.pth", "not a torch file of nothing but tensors"),
        ("empty.pth", "not a torch file of nothing but tensors"),
        ("garbage.safetensors", "not a readable safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
    for name in ("missing.pth", "missing.safetensors"):
        with pytest.raises(FileNotFoundError):
            read_weights(tmp_path / name)
