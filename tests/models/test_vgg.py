"""VGG A to E: sizes, parity with torchvision, initial weights, image sizes, refusals."""

import pytest
import torch
import torchvision.models
from torch import nn

from models.vgg import CONFIGURATIONS, VGG, layers_from_a
from tests.models.draws import require_drawn

SMALL = {"num_classes": 10, "width": 0.125}
NUM_PARAMETERS = {"A": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544, "E": 143_667_240}


def count_parameters(model):
    return sum(weight.numel() for weight in model.parameters())


def convolutions(model):
    return [layer for layer in model.features if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_parameter_counts(configuration):
    with torch.device("meta"):
        plain, normalised = VGG(configuration), VGG(configuration, batch_norm=True)
    assert count_parameters(plain) == NUM_PARAMETERS[configuration]
    channels = sum(layer.out_channels for layer in convolutions(plain))
    assert count_parameters(normalised) == NUM_PARAMETERS[configuration] + 2 * channels


@pytest.mark.parametrize(
    ("configuration", "num_weight_layers"), [("A", 11), ("B", 13), ("C", 16), ("D", 16), ("E", 19)]
)
def test_depth_is_that_of_table_1(configuration, num_weight_layers):
    model = VGG(configuration, **SMALL)
    assert len(convolutions(model)) + 3 == num_weight_layers
    kernels = [layer.kernel_size[0] for layer in convolutions(model)]
    assert kernels == ([3, 3, 3, 3, 3, 3, 1, 3, 3, 1, 3, 3, 1] if configuration == "C" else [3] * len(kernels))


@pytest.mark.parametrize("configuration", ["B", "C", "D", "E"])
@pytest.mark.parametrize(
    ("batch_norm", "features"),  # conv1_1, conv2_1, conv3_1 and conv3_2, here and in A, counted by hand
    [
        (False, {0: 0, 5: 3, 10: 6, 12: 8}),
        (True, {0: 0, 7: 4, 14: 8, 17: 11} | {1: 1, 8: 5, 15: 9, 18: 12}),
    ],
)
def test_layers_that_start_from_a(configuration, batch_norm, features):
    linear = {f"classifier.{layer}": f"classifier.{layer}" for layer in (0, 3, 6)}
    expected = {f"features.{ours}": f"features.{theirs}" for ours, theirs in features.items()} | linear
    assert layers_from_a(configuration, batch_norm) == expected


@pytest.mark.parametrize(("name", "configuration", "batch_norm"), [("vgg11", "A", False), ("vgg16_bn", "D", True)])
def test_strict_parity_with_torchvision(name, configuration, batch_norm):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    with torch.device("meta"):
        ours = VGG(configuration, batch_norm).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("suffix", ["", "_bn"])
@pytest.mark.parametrize(("name", "configuration"), [("vgg11", "A"), ("vgg13", "B"), ("vgg16", "D"), ("vgg19", "E")])
def test_every_state_dict_fits_torchvision(name, configuration, suffix):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name + suffix, weights=None)
        VGG(configuration, batch_norm=bool(suffix)).load_state_dict(theirs.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("image_px", [32, 64, 96, 128, 224, 288])
def test_other_image_sizes(image_px):
    model = VGG("A", **SMALL, image_px=image_px)
    assert model(torch.zeros(2, 3, image_px, image_px)).shape == (2, 10)


def test_too_small_an_image_names_the_smallest():
    with pytest.raises(ValueError, match=r"31 px are too small.* 32 px"):
        VGG("E", **SMALL, image_px=31)
    with pytest.raises(ValueError, match=r"16 px are too small.* 32 px"):
        VGG("C", **SMALL)(torch.zeros(1, 3, 16, 64))


def test_final_pooling_is_the_identity_at_224_px():
    model = VGG("A", **SMALL)
    with torch.no_grad():
        maps = model.features(torch.randn(1, 3, 224, 224))
        assert maps.shape[-2:] == (7, 7)
        assert torch.equal(model.avgpool(maps), maps)


def test_dropout_follows_the_two_hidden_layers():
    classifier = VGG("A", **SMALL, dropout=0.3).classifier
    assert [at for at, layer in enumerate(classifier) if isinstance(layer, nn.Dropout) and layer.p == 0.3] == [2, 5]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("init", "law", "conv_std", "linear_std"),
    [
        ("kaiming", "normal", lambda n_in, n_out: (2 / n_out) ** 0.5, lambda n_in, n_out: 0.01),
        ("glorot", "uniform", *[lambda n_in, n_out: (2 / (n_in + n_out)) ** 0.5] * 2),
        ("paper", "normal", *[lambda n_in, n_out: 0.1] * 2),
    ],
)
def test_initial_weights(init, law, conv_std, linear_std, batch_norm):
    torch.manual_seed(0)
    model = VGG("A", batch_norm, width=0.25, init=init)
    drawn = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(drawn) == 11
    for layer in drawn:
        assert not layer.bias.any()
        n_out, n_in, *kernel = layer.weight.shape
        area = kernel[0] * kernel[1] if kernel else 1
        require_drawn(layer.weight, law, (conv_std if kernel else linear_std)(n_in * area, n_out * area))
    normalisations = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(normalisations) == (8 if batch_norm else 0)
    for layer in normalisations:
        assert torch.equal(layer.weight, torch.ones_like(layer.weight))
        assert not layer.bias.any()


def test_kaiming_weights_are_torchvisions():
    torch.manual_seed(0)
    expected = torchvision.models.vgg11_bn(weights=None).state_dict()
    torch.manual_seed(0)
    found = VGG("A", batch_norm=True).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("configuration", "settings", "message"),
    [
        ("F", {}, "no configuration 'F'"),
        ("A", {"init": "he"}, "no init 'he': give one of kaiming"),
        ("A", {"width": -1}, "width is -1"),
        ("A", {"dropout": -0.1, "width": 0.1}, "dropout probability"),
    ],
)
def test_refused_settings(configuration, settings, message):
    with pytest.raises(ValueError, match=message):
        VGG(configuration, **settings)
