"""AlexNet of 2012 and 2014: the papers' sizes, initial weights and response normalisation; parity with torchvision."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet as torchvision_alexnet

from models.alexnet import AlexNet, AlexNet2012, ResponseNorm
from tests.models.draws import require_drawn

SMALL = {"num_classes": 10, "width": 0.125}


def count_parameters(model):
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        (AlexNet2012, {}, 60_965_224),
        (AlexNet2012, {"groups": 1}, 62_378_344),
        (AlexNet2012, {"num_classes": 10}, 60_965_224 - 990 * 4097),
        (AlexNet, {}, 61_100_840),
    ],
)
def test_parameter_counts(network, settings, expected):
    with torch.device("meta"):
        assert count_parameters(network(**settings)) == expected


def test_2012_maps_have_the_papers_sizes():
    with torch.device("meta"):
        model, maps = AlexNet2012(), torch.empty(1, 3, 224, 224)
        sizes = [tuple((maps := layer(maps)).shape[1:]) for layer in model.features]
    assert [size for size, before in zip(sizes, [(), *sizes], strict=False) if size != before] == [
        (96, 55, 55),
        (96, 27, 27),
        (256, 27, 27),
        (256, 13, 13),
        (384, 13, 13),
        (256, 13, 13),
        (256, 6, 6),
    ]


def test_2012_order_of_layers():
    kinds = [type(layer).__name__ for layer in AlexNet2012(**SMALL).features]
    stage = ["Conv2d", "ReLU", "ResponseNorm", "MaxPool2d"]
    assert kinds == [*stage * 2, *["Conv2d", "ReLU"] * 3, "MaxPool2d"]


def test_2012_groups_keep_the_halves_of_conv_2_4_and_5_apart():
    groups = [layer.groups for layer in AlexNet2012(**SMALL).features if isinstance(layer, nn.Conv2d)]
    assert groups == [1, 2, 1, 2, 2]


def test_2012_initial_weights():
    torch.manual_seed(0)
    layers = [layer for layer in AlexNet2012(width=0.5).modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, bias in zip(layers, [0, 1, 0, 1, 1, 1, 1, 0], strict=True):
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))
        require_drawn(layer.weight, "normal", 0.01)


def test_initial_weights_are_torchvisions():
    """PyTorch's default, weights and biases uniform within 1 / sqrt(inputs), drawn in the same order."""
    torch.manual_seed(0)
    expected = torchvision_alexnet(weights=None).state_dict()
    torch.manual_seed(0)
    model = AlexNet()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    require_drawn(model.features[3].weight, "uniform", (1 / 3) ** 0.5 / (64 * 5 * 5) ** 0.5)


def test_response_norm_is_the_papers_formula():
    torch.manual_seed(0)
    maps = torch.randn(2, 12, 3, 4, dtype=torch.float64) * 100  # large, so that the sum outweighs k
    expected = torch.empty_like(maps)
    for channel in range(12):
        low, high = max(0, channel - 2), min(11, channel + 2)
        squares = (maps[:, low : high + 1] ** 2).sum(dim=1)
        expected[:, channel] = maps[:, channel] / (2 + 1e-4 * squares) ** 0.75
    torch.testing.assert_close(ResponseNorm(12).double()(maps), expected)


def test_response_norm_has_torchs_values_and_gradients():
    """nn.LocalResponseNorm divides alpha by the number of channels in the window, the paper does not."""
    ours, theirs = ResponseNorm(24).double(), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    maps = 100 * torch.randn(2, 24, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = maps.contiguous(memory_format=torch.channels_last)
    found, expected = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    outputs, wanted = ours(found), theirs(expected)
    assert outputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs, wanted)
    slopes = torch.randn(maps.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs.backward(slopes)
    wanted.backward(slopes)
    torch.testing.assert_close(found.grad, expected.grad)


def test_response_norm_keeps_bfloat16_in_autocast():
    maps = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0)).mul(50).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ResponseNorm(16)(maps)
    assert found.dtype == torch.bfloat16
    expected = ResponseNorm(16)(maps.detach().float())
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0)
    found.sum().backward()
    assert maps.grad.isfinite().all()


def test_response_norm_has_nothing_to_save():
    assert not ResponseNorm(8).state_dict()


@pytest.mark.parametrize(("network", "places"), [(AlexNet2012, [2, 5]), (AlexNet, [0, 3])])
def test_dropout_lies_around_the_hidden_layers(network, places):
    model = network(**SMALL, dropout=0.3)
    found = [at for at, layer in enumerate(model.classifier) if isinstance(layer, nn.Dropout) and layer.p == 0.3]
    assert found == places
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_strict_parity_with_torchvision():
    torch.manual_seed(0)
    theirs, ours = torchvision_alexnet(weights=None).eval(), AlexNet().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("network", [AlexNet2012, AlexNet])
@pytest.mark.parametrize("image_px", [63, 64, 96, 128, 224, 288])
def test_other_image_sizes(network, image_px):
    assert network(**SMALL, image_px=image_px)(torch.zeros(2, 3, image_px, image_px)).shape == (2, 10)


@pytest.mark.parametrize("network", [AlexNet2012, AlexNet])
def test_too_small_an_image_names_the_smallest(network):
    with pytest.raises(ValueError, match=r"62 px are too small.* 63 px"):
        network(**SMALL, image_px=62)
    with pytest.raises(ValueError, match=r"62 px are too small.* 63 px"):
        network(**SMALL)(torch.zeros(1, 3, 80, 62))


def test_channels_last_images_and_a_compiled_graph_give_the_same():
    torch.manual_seed(0)
    model, images = AlexNet2012(**SMALL).eval(), torch.randn(2, 3, 96, 96)
    expected = model(images)
    torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    expected.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("width", [0.1, 0.25, 1.5])
def test_width_keeps_channels_multiples_of_eight(width):
    with torch.device("meta"):
        model = AlexNet2012(width=width)
    channels = [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)]
    for found, published in zip(channels, [96, 256, 384, 384, 256], strict=True):
        assert found % 8 == 0
        assert abs(found - published * width) <= 4
    assert model.classifier[-1].out_features == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": float("nan")}, "width is nan"),
        ({"groups": 3}, "groups is 3: give 1, 2"),
        ({"groups": 0}, "groups is 0"),
        ({"dropout": 1.5}, "dropout probability"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AlexNet2012(**settings)
