"""A network as one convolution over images of any size: its linear layers become convolutions (VGG section 3.2).

In: a network of `features`, `avgpool`, `classifier`, such as AlexNet and VGG, and the size of its crops. Out: a network
that takes images (N, 3, H, W) to maps of class scores (N, num_classes, h, w), one place for each crop it could have
been given. Of an image of exactly the crop's size the map has one place, with the scores of the network itself.
"""

import copy

import torch
from torch import nn

POINTWISE = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Dropout, nn.Identity)


def to_dense(network: nn.Module, crop_px: int) -> nn.Module:
    """The dense form of `network`, which is in evaluation mode; both share their weights.

    Where the crop's last feature map is as large as what `avgpool` makes of it (224 px for AlexNet and VGG), the first
    linear layer's weights are taken as they are; else the pooling, which is linear too, is multiplied into them.

    Raises ValueError for a network that is built otherwise, or whose dense form does not give its scores.
    """
    children = dict(network.named_children())
    if set(children) != {"features", "avgpool", "classifier"} or not isinstance(
        pool := children["avgpool"], nn.AdaptiveAvgPool2d
    ):
        raise ValueError(
            f"{type(network).__name__} has no dense form: that needs features, an adaptive avgpool and a classifier"
        )
    features, classifier = children["features"], children["classifier"]
    weight = next(network.parameters())
    crop = torch.rand(1, 3, crop_px, crop_px, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        maps = features(crop)
        layers: list[nn.Module] = []
        for layer in classifier if isinstance(classifier, nn.Sequential) else [classifier]:
            if isinstance(layer, nn.Linear):
                first = not any(isinstance(earlier, nn.Conv2d) for earlier in layers)
                layers.append(_convolution(layer, *((maps, pool(maps)) if first else (None, None))))
            elif isinstance(layer, POINTWISE):
                layers.append(copy.deepcopy(layer))
            else:
                raise ValueError(f"the classifier of {type(network).__name__} has a {type(layer).__name__}")
        dense = nn.Sequential(features, *layers).eval()
        wanted, found = network(crop), dense(crop)
    if found.shape[2:] != (1, 1) or not torch.allclose(
        found.flatten(1), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    ):
        raise ValueError(f"the dense form of {type(network).__name__} does not give its scores")
    return dense


def _convolution(layer: nn.Linear, maps: torch.Tensor | None, pooled: torch.Tensor | None) -> nn.Conv2d:
    """The linear layer as a convolution: 1 x 1, or, behind a pooling of `maps` to `pooled`, as large as the maps."""
    weight = layer.weight.detach()
    if maps is None or pooled is None:
        weight = weight[:, :, None, None]
    else:
        channels, (height, width) = maps.shape[1], maps.shape[2:]
        places = (pooled.shape[2], pooled.shape[3])
        weight = weight.view(-1, channels, *places)
        if places != (height, width):
            each = torch.eye(height * width).to(weight).view(height * width, 1, height, width)
            pooling = nn.functional.adaptive_avg_pool2d(each, places).flatten(1)  # [places, pooled]
            weight = (weight.flatten(2) @ pooling.T).view(-1, channels, height, width)
    outputs, inputs, *kernel = weight.shape
    convolution = nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]), bias=layer.bias is not None, device="meta")
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        convolution.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return convolution
