"""The network that a config or a checkpoint names, with its weights.

In: the config's model section, a number of classes; or a checkpoint folder. Out: an nn.Module on the CPU. What models/
refuses with ValueError becomes a UserError that names the config key.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.build import GROUPS, SETTINGS, SMALLEST_PX, check_name
from pipeline.config import Data, Model
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def check(config: Model, data: Data) -> None:
    """Refuse an unknown name, a setting that the network does not have or images too small, without importing torch."""
    try:
        check_name(config.name, config.settings())
    except ValueError as error:
        raise UserError(f"model.name={config.name}: {error}") from None
    smallest_px = SMALLEST_PX.get(config.name, 1)
    if data.crop_px < smallest_px:
        raise UserError(
            f"data.crop_px={data.crop_px} is too small for model.name={config.name}: give {smallest_px} or more"
        )
    if config.groups is not None and config.groups not in GROUPS:
        raise UserError(f"model.groups={config.groups}: give one of {', '.join(map(str, GROUPS))}")
    if config.reset_head and not config.weights:
        raise UserError("model.reset_head=true does something only together with model.weights")


def build(config: Model, data: Data, num_classes: int) -> "nn.Module":
    """The network with fresh weights, for images of data.crop_px."""
    from models.build import build as build_model

    settings: dict[str, Any] = config.settings()
    if config.name in SETTINGS or config.name.startswith("torchvision:"):
        settings["image_px"] = data.crop_px
    try:
        return build_model(config.name, num_classes, **settings)
    except ValueError as error:
        raise UserError(f"model.name={config.name}, data.crop_px={data.crop_px}: {error}") from None


def start_from(network: "nn.Module", config: Model) -> None:
    """Load `model.weights`: a file, a checkpoint folder, or torchvision's published ones. UserError if they misfit."""
    from models.weights import load_weights, read_weights, torchvision_weights

    assert config.weights is not None
    try:
        if config.weights == "torchvision":
            state = torchvision_weights(config.name)
        else:
            path = Path(config.weights)
            state = read_weights(path / "model.safetensors" if path.is_dir() else path)
        load_weights(network, state, reset_head=config.reset_head)
    except (ValueError, OSError) as error:
        text = str(error).replace("reset_head=True", "model.reset_head=true")
        raise UserError(f"model.weights={config.weights}: {text}") from None


def from_checkpoint(folder: Path, config: Model, data: Data, num_classes: int) -> "nn.Module":
    """The network of a checkpoint, its weights read from model.safetensors."""
    from models.weights import load_weights, read_weights

    network = build(config, data, num_classes)
    try:
        load_weights(network, read_weights(folder / "model.safetensors"))
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: {error}") from None
    return network
