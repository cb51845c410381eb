"""The dense form is the network itself: the same weights, the same scores, at every place of a larger image."""

import pytest
import torch
from torch import nn

from models.build import build
from models.dense import Dense

NETWORKS = [
    ("alexnet", 224),
    ("alexnet_2012", 224),
    ("vgg11", 224),
    ("vgg16c_bn", 224),
    ("alexnet", 96),  # the pooling repeats: 2 x 2 maps become 6 x 6
    ("torchvision:efficientnet_b0", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("vgg11_bn", 64),
    ("vgg11", 288),  # it averages: 9 x 9 maps become 7 x 7
]


def network(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    settings = settings if ":" in name else {"width": 0.125, **settings}
    built = build(name, 12, **settings)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return built.eval()


@pytest.mark.parametrize(("name", "px"), NETWORKS)
@torch.inference_mode()
def test_on_an_image_of_the_crops_size_it_is_the_network(name, px):
    plain = network(name)
    dense, images = Dense(plain, px), torch.randn(3, 3, px, px)
    maps = dense(images)
    assert maps.shape == (3, 12, 1, 1)
    torch.testing.assert_close(maps[:, :, 0, 0], plain(images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "vgg11", "vgg13_bn", "vgg16c", "vgg16", "vgg19_bn"])
def test_it_holds_the_same_weights(name):
    plain = network(name)
    dense = Dense(plain, 224)
    assert dense.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(plain.parameters(), dense.parameters(), strict=True):
        assert ours is theirs  # none is copied: VGG's are half a gigabyte


@torch.inference_mode()
def test_it_is_the_network_with_convolutions_for_linear_layers():
    plain = network("vgg11")
    layers: list[nn.Module] = [plain.features]
    for number, layer in enumerate(plain.classifier):
        if isinstance(layer, nn.Linear):
            side = 7 if number == 0 else 1
            convolution = nn.Conv2d(layer.in_features // side**2, layer.out_features, side)
            convolution.weight = nn.Parameter(layer.weight.view(layer.out_features, -1, side, side))
            convolution.bias = layer.bias
            layers.append(convolution)
        else:
            layers.append(layer)
    images = torch.randn(2, 3, 256, 320)
    wanted = nn.Sequential(*layers).eval()(images)
    assert wanted.shape == (2, 12, 2, 4)
    torch.testing.assert_close(Dense(plain, 224)(images), wanted, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_a_place_of_the_map_is_the_crop_there_away_from_the_border():
    """Without padding there is no border, so all places are crops: stride 32 of VGG, 64 + 2 * 32 px."""
    plain = network("vgg11", image_px=64)
    for layer in plain.features:
        if isinstance(layer, nn.Conv2d):
            layer.kernel_size, layer.padding = (1, 1), (0, 0)
            layer.weight = nn.Parameter(layer.weight[:, :, :1, :1])
    image = torch.randn(1, 3, 128, 128)
    maps = Dense(plain, 64)(image)
    assert maps.shape[2:] == (3, 3)
    for row in range(3):
        for column in range(3):
            crop = image[:, :, 32 * row : 32 * row + 64, 32 * column : 32 * column + 64]
            torch.testing.assert_close(maps[0, :, row, column], plain(crop)[0], rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_sizes_of_maps_of_vgg():
    """Stride 32: an image of 384 x 512 has 12 x 16 maps, and 6 x 10 places for the 7 x 7 window of the first layer."""
    dense = Dense(network("vgg11"), 224)
    assert dense(torch.zeros(1, 3, 384, 512)).shape == (1, 12, 6, 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("torchvision:resnet18", "ResNet has no dense form"), ("torchvision:convnext_tiny", "ConvNeXt has no dense form")],
)
def test_networks_without_one(name, reason):
    with pytest.raises(ValueError, match=reason):
        Dense(build(name, 3).eval(), 224)


def test_a_network_that_only_looks_like_one():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.avgpool, self.classifier = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

        def forward(self, images):
            return 2 * self.classifier(self.avgpool(self.features(images)).flatten(1))

    with pytest.raises(ValueError, match="the dense form of Odd does not give its scores"):
        Dense(Odd(), 16)
