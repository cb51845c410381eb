"""VGG, configurations A to E of "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv:1409.1556).

In: images (N, 3, H, W), at least 32 px a side. Out: logits (N, num_classes). With or without batch normalisation, which
is younger than the paper. Parameter names are torchvision's, so that its weights load; it has no configuration C.

    logits = VGG("D", batch_norm=True)(images)  # vgg16_bn
"""

import torch
from torch import nn

from models.geometry import require_image_px, scaled, smallest_image_px

MAP_PX = 7  # side of the last feature map at 224 px
INITS = ("kaiming", "glorot", "paper")

# Table 1: channels of the convolutions of each block. C is D with 1x1 windows in the third convolution of a block.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "D": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "E": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}
FROM_A = ((0, 0), (1, 0), (2, 0), (2, 1))  # A's first four convolutions: block and place in it


class VGG(nn.Module):
    """One configuration of Table 1, its channels and hidden layers multiplied by `width`.

    Images of a size other than 224 px are pooled to 7 x 7 maps before the classifier, as in torchvision; at 224 px that
    pooling changes nothing. `init` is one of `initialise`'s.

    Raises ValueError for an unknown `configuration` or `init`, a width of 0 or less, a `dropout` outside 0..1 and an
    `image_px` too small; `forward` raises it for images too small.
    """

    def __init__(
        self,
        configuration: str,
        batch_norm: bool = False,
        num_classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.5,
        init: str = "kaiming",
        image_px: int = 224,
    ) -> None:
        super().__init__()
        self.features = feature_layers(configuration, batch_norm, width)
        self.avgpool = nn.AdaptiveAvgPool2d((MAP_PX, MAP_PX))
        hidden = scaled(4096, width)
        self.classifier = nn.Sequential(
            nn.Linear(scaled(512, width) * MAP_PX * MAP_PX, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        self.name, self.configuration, self.batch_norm = f"VGG {configuration}", configuration, batch_norm
        self.smallest_px = smallest_image_px(self.features)
        require_image_px(self.name, image_px, self.smallest_px)
        initialise(self, init)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        require_image_px(self.name, min(images.shape[-2:]), self.smallest_px)
        maps = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(maps, 1))


def feature_layers(configuration: str, batch_norm: bool, width: float) -> nn.Sequential:
    """The convolutions of a configuration, each with its ReLU, and 2x2 pooling after each block (Section 2.1)."""
    if configuration not in CONFIGURATIONS:
        raise ValueError(f"VGG has no configuration {configuration!r}: give one of {', '.join(CONFIGURATIONS)}")
    layers: list[nn.Module] = []
    inputs = 3
    for block in CONFIGURATIONS[configuration]:
        for position, channels in enumerate(block):
            outputs = scaled(channels, width)
            kernel = 1 if configuration == "C" and position == 2 else 3
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def layers_from_a(configuration: str, batch_norm: bool) -> dict[str, str]:
    """The layers of a deeper `configuration` that start from a trained A, each with A's name of it: {"features.5":
    "features.3", ...}.

    "We initialised the first four convolutional layers and the last three fully-connected layers with the layers of net
    A (the intermediate layers were initialised randomly)", without a lower learning rate (Section 3.1). A's first four
    convolutions, 3 -> 64 -> 128 -> 256 -> 256 channels, do not fit the first four of B to E, two of which take 64 to 64
    and 128 to 128. So they are taken to mean A's layers, each going to its own block and place in it: conv1_1, conv2_1,
    conv3_1, conv3_2. The batch normalisation behind a convolution goes with it.
    """
    theirs, ours = (_convolution_numbers(name, batch_norm) for name in ("A", configuration))
    pairs = [(ours[at] + behind, theirs[at] + behind) for at in FROM_A for behind in range(1 + batch_norm)]
    linear = {f"classifier.{layer}": f"classifier.{layer}" for layer in (0, 3, 6)}
    return {f"features.{our}": f"features.{their}" for our, their in pairs} | linear


def _convolution_numbers(configuration: str, batch_norm: bool) -> dict[tuple[int, int], int]:
    """Block and place of each convolution, with its number in `feature_layers`."""
    numbers, number = {}, 0
    for block, channels in enumerate(CONFIGURATIONS[configuration]):
        for place in range(len(channels)):
            numbers[block, place] = number
            number += 3 if batch_norm else 2  # with its ReLU
        number += 1  # pooling
    return numbers


def initialise(model: nn.Module, init: str) -> None:
    """Draws the weights of every convolution and linear layer anew; biases 0. Raises ValueError for an unknown `init`.

    - `kaiming`: torchvision's; convolutions by He et al. (fan out), linear layers from N(0, 0.01).
    - `glorot`: uniform by Glorot and Bengio, which the paper found to train without pre-training (Section 3.1, note 2).
    - `paper`: normal of zero mean and 10^-2 variance (Section 3.1), to the letter. Kept for study: on unit-variance
      images the first logits of configuration A have a deviation of 1.7e6, and with the deviation of 10^-2 that many
      take the sentence to mean 1.8e-5. The paper itself only started its deeper networks from a trained A.
    """
    if init not in INITS:
        raise ValueError(f"VGG has no init {init!r}: give one of {', '.join(INITS)}")
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if init == "paper":
            nn.init.normal_(layer.weight, std=0.1)
        elif init == "glorot":
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
