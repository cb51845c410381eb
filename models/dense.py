"""A network on images of any size: its classifier at every place of the feature map (VGG section 3.2).

In: a network of `features`, `avgpool`, `classifier`, such as AlexNet and VGG, and the size of its crops. Out: a network
that takes images (N, 3, H, W) to maps of class scores (N, num_classes, h, w). That is the network with its linear
layers turned into convolutions; they are computed as linear layers of the windows they would see, since as a
convolution AlexNet's first one takes 10 times as long on a CPU (BENCHMARKS.md). Of an image of exactly the crop's size
the map has one place, with the scores of the network itself.
"""

import torch
import torch.nn.functional as F
from torch import nn

WINDOWS_ON_CPU = 32  # or several times so many: products of few rows are rounded otherwise at another number of threads


class Dense(nn.Module):
    """`network`, which is in evaluation mode, at every place; both share their layers.

    Raises ValueError for a network that is built otherwise, or of which this does not give the scores.
    """

    def __init__(self, network: nn.Module, crop_px: int) -> None:
        super().__init__()
        layers, name = dict(network.named_children()), type(network).__name__
        if set(layers) != {"features", "avgpool", "classifier"}:
            raise ValueError(
                f"{name} has no dense form: that needs features, avgpool and a classifier, and nothing else"
            )
        self.features, self.avgpool, self.classifier = layers["features"], layers["avgpool"], layers["classifier"]
        weight = next(network.parameters())
        crop = torch.rand(1, 3, crop_px, crop_px, generator=torch.Generator().manual_seed(0)).to(weight)
        try:
            with torch.no_grad():
                self.side = self.features(crop).shape[2]
                expected, dense = network(crop), self(crop)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name} has no dense form: {error}") from error
        allowed = 1e-3 * expected.abs() + 1e-3 * expected.abs().max()  # TF32 on a GPU rounds to 5e-4
        if dense.shape[2:] != (1, 1) or ((dense.flatten(1) - expected).abs() > allowed).any():
            raise ValueError(f"the dense form of {name} does not give its scores")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.features(images)
        (number, channels, height, width), side = maps.shape, self.side
        windows = F.unfold(maps, side).transpose(1, 2).reshape(-1, channels, side, side)
        num_windows = len(windows)
        if images.device.type == "cpu":
            windows = torch.cat([windows, windows.new_zeros(-num_windows % WINDOWS_ON_CPU, channels, side, side)])
        scores = self.classifier(torch.flatten(self.avgpool(windows), 1))[:num_windows]
        return scores.view(number, height - side + 1, width - side + 1, -1).permute(0, 3, 1, 2)
