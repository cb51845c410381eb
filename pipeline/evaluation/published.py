"""What torchvision says of its published weights: preprocessing, class names, errors on ILSVRC-2012 validation."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from models.build import torchvision_names

# Their weights want pixels in -1..1, which torchvision hides in the networks (transform_input).
IN_MINUS_1_TO_1 = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Published:
    """One file of weights: `data` are settings of the data section, `errors` top-1 and top-5 in % of the centre
    crop."""

    file: str
    data: dict[str, Any]
    classes: tuple[str, ...]
    errors: tuple[float, float]
    is_default: bool


@cache
def torchvision_entries(name: str) -> tuple[Published, ...]:
    """The published weights of `vgg16` or `torchvision:vgg16`, oldest first; none for a network that has none."""
    from torchvision.models import get_model_weights

    bare = name.removeprefix("torchvision:")
    if bare not in torchvision_names():
        return ()
    entries, rows = list(get_model_weights(bare)), []
    default = getattr(get_model_weights(bare), "DEFAULT", None)
    for entry in entries:
        transforms, metrics = entry.transforms(), entry.meta["_metrics"].get("ImageNet-1K")
        if metrics is None or entry.meta["categories"] is None:  # of the convolutions alone, or fine-tuned
            continue
        mean, std = ((0.5,) * 3,) * 2 if bare in IN_MINUS_1_TO_1 else (tuple(transforms.mean), tuple(transforms.std))
        data = {
            "crop_px": transforms.crop_size[0],
            "resize_px": transforms.resize_size[0],
            "interpolation": transforms.interpolation.value,
            "antialias": True,  # the figures come from PIL, whose filters always do
            "mean": mean,
            "std": std,
        }
        errors = round(100 - metrics["acc@1"], 3), round(100 - metrics["acc@5"], 3)
        rows.append(
            Published(entry.url.rpartition("/")[2], data, tuple(entry.meta["categories"]), errors, entry is default)
        )
    return tuple(rows)
