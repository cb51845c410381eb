"""A network from its name in a config: `build("vgg16", num_classes=1000, dropout=0.3)`.

Names are those of `known_names`, `torchvision:NAME` for any classification network of torchvision, or
`package.module:factory` for a function `factory(num_classes=..., **settings)` of your own that returns an nn.Module.
`check_name` tells a wrong name, or a setting that the network does not have, without importing torch.
"""

import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

VGG_CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16c": "C", "vgg16": "D", "vgg19": "E"}
SETTINGS = {
    "alexnet_2012": {"width", "dropout", "groups", "image_px"},
    "alexnet": {"width", "dropout", "image_px"},
    **{
        name + suffix: {"width", "dropout", "init", "image_px"} for suffix in ("", "_bn") for name in VGG_CONFIGURATIONS
    },
}
# The deeper VGGs, each with the network whose trained layers it can start from (models.vgg.layers_from_a).
GROWS_FROM = {
    name + suffix: f"vgg11{suffix}" for suffix in ("", "_bn") for name in VGG_CONFIGURATIONS if name != "vgg11"
}
# What the networks themselves refuse, known before torch is imported; a test asks them.
GROUPS = (1, 2, 4, 8)
SMALLEST_PX = {name: 63 if name.startswith("alexnet") else 32 for name in SETTINGS}

# torchvision's families whose functions take `dropout`.
TORCHVISION_DROPOUT = re.compile("alexnet|vgg|squeezenet|googlenet|inception|mnasnet|mobilenet|efficientnet|vit_|swin_")
# These two return a tuple in training unless told not to, where every other network returns logits.
TORCHVISION_FIXED = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def known_names() -> list[str]:
    """The names of the networks of this package; `torchvision:NAME` and `package.module:factory` work as well."""
    return list(SETTINGS)


def check_name(name: str, settings: Iterable[str] = ()) -> None:
    """Returns if `build` knows `name` and all `settings` apply to it, which takes milliseconds: torch is not imported.

    Of `package.module:factory` only the package is looked up. Raises ValueError naming the nearest known names, or the
    setting, the model and the settings that it has.
    """
    source, colon, rest = name.partition(":")
    if colon and source != "torchvision":
        _check_factory(name)
        return
    if colon and rest in torchvision_names():
        understood = {"image_px"} | ({"dropout"} if TORCHVISION_DROPOUT.match(rest) else set())
    elif not colon and name in SETTINGS:
        understood = SETTINGS[name]
    else:
        raise ValueError(f"unknown model {name!r}{_nearest(rest if colon else name, bool(colon))} Known are {_known()}")
    if wrong := sorted(set(settings) - understood):
        raise ValueError(f"model {name} has no setting {', '.join(wrong)}; it has {', '.join(sorted(understood))}")


def build(name: str, num_classes: int, **settings: Any) -> "nn.Module":
    """The network `name` with fresh weights: images (N, 3, H, W) to logits (N, `num_classes`).

    Settings, each only where the network has it: `width` (factor on channels), `dropout` (0..1), `groups` (of
    alexnet_2012), `init` (of VGG), `image_px` (side of the images to come, refused if too small for the network).
    Raises ValueError as `check_name` does, and for values that the network refuses.
    """
    check_name(name, settings)
    if num_classes < 1:
        raise ValueError(f"model {name}: num_classes is {num_classes}, give at least 1")
    source, colon, rest = name.partition(":")
    if colon:
        if source == "torchvision":
            return _build_torchvision(rest, num_classes, settings)
        return _build_factory(source, rest, num_classes, settings)
    from models.alexnet import AlexNet, AlexNet2012
    from models.vgg import VGG

    if name.startswith("vgg"):
        plain = name.removesuffix("_bn")
        return VGG(VGG_CONFIGURATIONS[plain], plain != name, num_classes=num_classes, **settings)
    return (AlexNet2012 if name == "alexnet_2012" else AlexNet)(num_classes=num_classes, **settings)


@cache
def torchvision_names() -> frozenset[str]:
    """The classification networks of the installed torchvision, read from its source files; empty if there is none."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        return frozenset()
    # torchvision.models.list_models() would say it too, after seconds of importing torch.
    registered = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    files = (Path(package.origin).parent / "models").glob("*.py")
    return frozenset(name for file in files for name in registered.findall(file.read_text(encoding="utf-8")))


def _build_torchvision(name: str, num_classes: int, settings: Mapping[str, Any]) -> "nn.Module":
    from torchvision.models import get_model, get_model_weights

    from models.geometry import require_image_px

    keywords: dict[str, Any] = {**TORCHVISION_FIXED.get(name, {}), **settings}
    if (image_px := keywords.pop("image_px", None)) is not None:
        if name.startswith("vit_"):
            keywords["image_size"] = image_px
        elif name.startswith("maxvit_"):
            keywords["input_size"] = (image_px, image_px)
        elif not name.startswith("swin_"):  # Swin pads any size, though torchvision says 224 or 256
            smallest = get_model_weights(name).DEFAULT.meta.get("min_size", (1, 1))
            require_image_px(f"torchvision:{name}", image_px, max(smallest))
    try:
        return get_model(name, weights=None, num_classes=num_classes, **keywords)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"torchvision:{name} refuses {keywords}: {error}") from error


def _build_factory(module: str, function: str, num_classes: int, settings: Mapping[str, Any]) -> "nn.Module":
    from torch import nn

    name = f"{module}:{function}"
    try:
        factory: Callable[..., object] | None = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        # Only the module that was named is a mistake of the config; one that it imports itself is not.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"model {name}: there is no module {error.name}") from error
    if not callable(factory):
        raise ValueError(f"model {name}: module {module} has no function {function}")
    try:
        inspect.signature(factory).bind(num_classes=num_classes, **settings)
    except TypeError as error:
        given = ", ".join(["num_classes", *settings])
        raise ValueError(f"model {name} cannot be called with {given}: {error}") from error
    model = factory(num_classes=num_classes, **settings)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name} returned {type(model).__name__}, not an nn.Module")
    return model


def _check_factory(name: str) -> None:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise ValueError(f"unknown model {name!r}; a function of your own is written package.module:factory")
    package = name.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"model {name}: there is no package {package}; is it installed, or on PYTHONPATH?")


def _nearest(name: str, in_torchvision: bool) -> str:
    full_names = {known: f"torchvision:{known}" for known in torchvision_names()}
    if not in_torchvision:
        full_names |= {known: known for known in SETTINGS}
    near = difflib.get_close_matches(name.lower(), full_names, n=3)
    return f". Did you mean {' or '.join(full_names[known] for known in near)}?" if near else "."


def _known() -> str:
    return f"{', '.join(SETTINGS)}, torchvision:NAME and package.module:factory"
