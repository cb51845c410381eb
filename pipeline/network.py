"""The network that a config or a checkpoint names, with its weights.

In: the config's model section, a number of classes; or a checkpoint folder. Out: an nn.Module on the CPU. What models/
refuses with ValueError becomes a UserError that names the config key.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.build import GROUPS, GROWS_FROM, SETTINGS, SMALLEST_PX, check_name
from pipeline import checkpoint
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
    if config.grow_from and config.name not in GROWS_FROM:
        raise UserError(
            f"model.grow_from={config.grow_from} does nothing for model.name={config.name}, only for "
            f"{', '.join(GROWS_FROM)}. Leave it out"
        )
    if config.grow_from and config.weights:
        raise UserError(
            f"model.grow_from={config.grow_from} and model.weights={config.weights} both say what to start from. "
            f"Leave one of them out"
        )


def check_start(config: Model) -> None:
    """Refuse weights to start from that are not there, without importing torch."""
    if config.weights and config.weights != "torchvision":
        _file("model.weights", config.weights, "a run folder, a checkpoint's folder, or a file of weights")
    if config.grow_from:
        _file_to_grow_from(config)


def settings(config: Model, data: Data) -> dict[str, Any]:
    """What `models.build.build` is called with beside name and classes, for images of data.crop_px."""
    knows_px = config.name in SETTINGS or config.name.startswith("torchvision:")
    return config.settings() | ({"image_px": data.crop_px} if knows_px else {})


def build(config: Model, data: Data, num_classes: int) -> "nn.Module":
    """The network with fresh weights, for images of data.crop_px."""
    from models.build import build as build_model

    try:
        return build_model(config.name, num_classes, **settings(config, data))
    except ValueError as error:
        raise UserError(f"model.name={config.name}, data.crop_px={data.crop_px}: {error}") from None


def start_from(network: "nn.Module", config: Model) -> None:
    """Load `model.weights`: a file, a run's or a checkpoint's folder, or torchvision's published ones. UserError if
    they misfit."""
    from models.weights import load_weights, read_weights, torchvision_weights

    assert config.weights is not None
    try:
        if config.weights == "torchvision":
            state = torchvision_weights(config.name)
        else:
            state = read_weights(_file("model.weights", config.weights, "a run folder or a file of weights"))
        load_weights(network, state, reset_head=config.reset_head)
    except (ValueError, OSError) as error:
        text = str(error).replace("reset_head=True", "model.reset_head=true")
        raise UserError(f"model.weights={config.weights}: {text}") from None


def grow(network: "nn.Module", config: Model) -> None:
    """Copy the layers of `model.grow_from` that the paper took (models.vgg.layers_from_a). UserError if they misfit."""
    from models.vgg import VGG
    from models.weights import grow as grow_vgg
    from models.weights import read_weights

    assert isinstance(network, VGG)  # see check
    file = _file_to_grow_from(config)
    try:
        grow_vgg(network, read_weights(file))
    except (ValueError, OSError) as error:
        where = config.grow_from if file == Path(config.grow_from or "") else f"{config.grow_from}: {file}"
        source = f"weights of {GROWS_FROM[config.name]} with the same model.width and classes"
        raise UserError(f"model.grow_from={where}: {error}\nGive {source}, or leave model.grow_from out") from None


def from_checkpoint(folder: Path, config: Model, data: Data, num_classes: int) -> "nn.Module":
    """The network of a checkpoint, its weights read from model.safetensors."""
    from models.weights import load_weights, read_weights

    network = build(config, data, num_classes)
    try:
        load_weights(network, read_weights(folder / "model.safetensors"))
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}: {error}") from None
    return network


def _file_to_grow_from(config: Model) -> Path:
    """The file that `model.grow_from` means, of a run its best checkpoint's. UserError if it is not there."""
    assert config.grow_from is not None
    kinds = f"a run folder of {GROWS_FROM[config.name]}, a checkpoint's folder, or a file of weights"
    return _file("model.grow_from", config.grow_from, kinds)


def _file(key: str, where: str, kinds: str) -> Path:
    """The file that the config's `key` means by `where`: of a run its best checkpoint's, or its last one's."""
    path = Path(where)
    if not path.exists():
        raise UserError(f"{key}={where} does not exist. Give {kinds}")
    if path.is_dir():
        try:
            path = checkpoint.find(path, "best" if checkpoint.latest(path, "best") else "latest") / checkpoint.WEIGHTS
        except UserError as error:
            raise UserError(f"{key}={where}: {error}") from None
    return path


def try_start(config: Model, data: Data, num_classes: int) -> None:
    """Refuse weights to start from that do not fit, by loading them once."""
    if config.weights or config.grow_from:
        network = build(config, data, num_classes)
        (start_from if config.weights else grow)(network, config)
