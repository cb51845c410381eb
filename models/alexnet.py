"""AlexNet, both networks that go by the name: images (N, 3, H, W) in, logits (N, num_classes) out.

`AlexNet2012` is the network of "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012), with
60,965,224 parameters. `AlexNet` is what torchvision calls alexnet, from "One weird trick for parallelizing
convolutional neural networks" (arXiv:1404.5997, 2014): other channels, no groups, no response normalisation,
61,100,840 parameters.

    logits = AlexNet2012(num_classes=1000)(images)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from models.compiler import builds_triton
from models.geometry import CHANNEL_MULTIPLE, require_image_px, scaled, smallest_image_px

MAP_PX = 6  # side of the last feature map at 224 px
RESPONSE_SIZE, RESPONSE_K, RESPONSE_ALPHA, RESPONSE_BETA = 5, 2.0, 1e-4, 0.75  # n, k, alpha, beta of section 3.3


class AlexNet2012(nn.Module):
    """The network of 2012, its two GPUs joined in one: `groups=2` keeps the halves of conv 2, 4 and 5 apart (Figure 2).

    The paper's "224 x 224" and its 55 x 55 maps agree only with padding 2 before the first layer, which is used here.
    Images of another size are pooled to 6 x 6 maps before the classifier; at 224 px that pooling changes nothing.

    The paper's initial weights are meant for its images: pixels of 0..255 less their mean, not divided by a deviation.
    With unit-variance images the first gradient of conv 1 is about 50 times smaller relative to its weights.

    Raises ValueError for a width of 0 or less, a `dropout` outside 0..1, `groups` other than 1, 2, 4 or 8, and an
    `image_px` too small; `forward` raises it for images too small.
    """

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5, groups: int = 2, image_px: int = 224
    ) -> None:
        super().__init__()
        if groups < 1 or CHANNEL_MULTIPLE % groups:
            raise ValueError(f"alexnet_2012: groups is {groups}: give 1, 2 (the paper's two GPUs), 4 or 8")
        c1, c2, c3, c4, c5, hidden = (scaled(channels, width) for channels in (96, 256, 384, 384, 256, 4096))
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            ResponseNorm(c1),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(c1, c2, kernel_size=5, padding=2, groups=groups),
            nn.ReLU(inplace=True),
            ResponseNorm(c2),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(c2, c3, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, kernel_size=3, padding=1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, kernel_size=3, padding=1, groups=groups),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((MAP_PX, MAP_PX))
        self.classifier = nn.Sequential(
            nn.Linear(c5 * MAP_PX * MAP_PX, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        self.smallest_px = smallest_image_px(self.features)
        require_image_px("alexnet_2012", image_px, self.smallest_px)
        self._initialise()

    def _initialise(self) -> None:
        """Section 5: weights from N(0, 0.01), biases 1 in conv 2, 4, 5 and the hidden linear layers, else 0."""
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        # Ones feed the ReLUs positive inputs, "this initialization accelerates the early stages of learning".
        for layer, bias in zip(layers, (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0), strict=True):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        require_image_px("alexnet_2012", min(images.shape[-2:]), self.smallest_px)
        maps = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(maps, 1))


class AlexNet(nn.Module):
    """torchvision's `alexnet`, with its parameter names and PyTorch's default initial weights.

    It adds a `width`, and images too small raise ValueError with the smallest size that works.
    Raises ValueError for the settings that `AlexNet2012` refuses.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, dropout: float = 0.5, image_px: int = 224) -> None:
        super().__init__()
        c1, c2, c3, c4, c5, hidden = (scaled(channels, width) for channels in (64, 192, 384, 256, 256, 4096))
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(c1, c2, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(c2, c3, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((MAP_PX, MAP_PX))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c5 * MAP_PX * MAP_PX, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        self.smallest_px = smallest_image_px(self.features)
        require_image_px("alexnet", image_px, self.smallest_px)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        require_image_px("alexnet", min(images.shape[-2:]), self.smallest_px)
        maps = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(maps, 1))


class ResponseNorm(nn.Module):
    """Section 3.3: b_i = a_i / (2 + 1e-4 * sum of a_j^2 over the 5 channels around i)^0.75. Maps (N, channels, H, W).

    The sum is a 1 x 1 convolution with a band of ones: forward and backward take a fifth of the time of
    nn.LocalResponseNorm (BENCHMARKS.md), which pools in three dimensions. On a GPU where kernels can be built, the
    whole is one kernel each way (response_norm.py).
    """

    band: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        numbers = torch.arange(channels)
        near = (numbers[:, None] - numbers).abs() <= RESPONSE_SIZE // 2
        self.register_buffer("band", near.float()[:, :, None, None], persistent=False)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if maps.is_cuda and builds_triton():
            from models.response_norm import response_norm

            return response_norm(maps, RESPONSE_K, RESPONSE_ALPHA)
        return self.by_torch(maps)

    def by_torch(self, maps: torch.Tensor) -> torch.Tensor:
        kind = "cpu" if maps.is_meta else maps.device.type  # models.summary computes shapes on the meta device
        with torch.autocast(kind, enabled=False):  # it would make float32 of bfloat16 on the way
            return _ResponseNorm.apply(maps, self.band.to(maps.dtype))


class _ResponseNorm(torch.autograd.Function):
    """With d = k + alpha around(x^2): y = x d^-0.75, and dx = g d^-0.75 - 1.5 alpha x around(g x d^-1.75)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
        two = torch.full_like(band[:, 0, 0, 0], RESPONSE_K)
        d = F.conv2d(x * x, RESPONSE_ALPHA * band, two)
        root = d.rsqrt()
        power = root.sqrt().mul_(root)  # d^-0.75; pow is slower
        ctx.save_for_backward(x, d, power, band)
        return x * power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, d, power, band = ctx.saved_tensors
        direct = gradient * power
        around = F.conv2d((direct * x).div_(d), band)
        return torch.addcmul(direct, x, around, value=-2 * RESPONSE_BETA * RESPONSE_ALPHA), None
