"""Which published number an evaluation may be compared with: errors in % on ILSVRC-2012 validation.

In: what was scored, and how. Out: a sentence that names the row, or says that there is none and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.evaluation.published import torchvision_entries
from pipeline.views import parse

ILSVRC_IMAGES, ILSVRC_CLASSES = 50_000, 1000
ALEXNET = "Krizhevsky et al. 2012, table 2"
VGG = "Simonyan and Zisserman 2014"
JITTERED = (256, 512)

# (configuration, training scale, test scales): top-1 and top-5 error of the dense view. Tables 3 and 4.
DENSE = {
    ("A", (256, 256), (256,)): (29.6, 10.4),
    ("B", (256, 256), (256,)): (28.7, 9.9),
    ("C", (256, 256), (256,)): (28.1, 9.4),
    ("C", (384, 384), (384,)): (28.1, 9.3),
    ("C", JITTERED, (384,)): (27.3, 8.8),
    ("D", (256, 256), (256,)): (27.0, 8.8),
    ("D", (384, 384), (384,)): (26.8, 8.7),
    ("D", JITTERED, (384,)): (25.6, 8.1),
    ("E", (256, 256), (256,)): (27.3, 9.0),
    ("E", (384, 384), (384,)): (26.9, 8.7),
    ("E", JITTERED, (384,)): (25.5, 8.0),
    ("B", (256, 256), (224, 256, 288)): (28.2, 9.6),
    ("C", (256, 256), (224, 256, 288)): (27.7, 9.2),
    ("C", (384, 384), (352, 384, 416)): (27.8, 9.2),
    ("C", JITTERED, (256, 384, 512)): (26.3, 8.2),
    ("D", (256, 256), (224, 256, 288)): (26.6, 8.6),
    ("D", (384, 384), (352, 384, 416)): (26.5, 8.6),
    ("D", JITTERED, (256, 384, 512)): (24.8, 7.5),
    ("E", (256, 256), (224, 256, 288)): (26.9, 8.7),
    ("E", (384, 384), (352, 384, 416)): (26.7, 8.6),
    ("E", JITTERED, (256, 384, 512)): (24.8, 7.5),
}
# (configurations, view), all at Q = 256, 384, 512, trained on JITTERED. Tables 5 and 6.
MULTI_CROP = {
    ("D", "150"): (24.6, 7.5),
    ("D", "150+dense"): (24.4, 7.2),
    ("E", "150"): (24.6, 7.4),
    ("E", "150+dense"): (24.4, 7.1),
    ("DE", "dense"): (24.0, 7.1),
    ("DE", "150"): (23.9, 7.2),
    ("DE", "150+dense"): (23.7, 6.8),
}
CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16c": "C", "vgg16": "D", "vgg19": "E"}
AVERAGES = {
    "alexnet_2012": "38.1 / 16.4, often quoted, is the average of five networks",
    "vgg": "23.7 / 6.8, often quoted, is the average of two networks (D and E), 150 crops and dense",
}


@dataclass(frozen=True)
class ScoredWeights:
    """One network: its settings, and the file of its weights."""

    config: Config
    weights: Path


def compare(view: str, entries: Sequence[ScoredWeights], num_images: int, num_classes: int) -> str:
    """The sentence behind "compare with:"; errors are top-1 / top-5 in %."""
    if (num_images, num_classes) != (ILSVRC_IMAGES, ILSVRC_CLASSES):
        whole = f"{ILSVRC_IMAGES:,} images of {ILSVRC_CLASSES:,} classes"
        return f"none: published numbers are of ILSVRC-2012 validation, {whole}"
    names = [entry.config.model.name.removeprefix("torchvision:") for entry in entries]
    row = _row(view, entries, names)
    if len(entries) == 1:
        family = "vgg" if names[0] in CONFIGURATIONS else names[0]
        warning = AVERAGES.get(family)
        return f"{row or 'none: no paper has this view of this network'}{f'. {warning}' if warning else ''}"
    return row or "none: no paper has this ensemble in this view. Do not compare it with rows of single networks"


def _row(view: str, entries: Sequence[ScoredWeights], names: Sequence[str]) -> str:
    if len(entries) == 1 and view == "centre" and (published := _of_torchvision(entries[0])):
        return published
    if not all(_is_the_papers(entry.config) for entry in entries):
        return ""
    if set(names) == {"alexnet_2012"}:
        square = all(
            entry.config.data.resize_px == 256
            and entry.config.data.recipe == "alexnet"
            and entry.config.evaluation.corners == "square"
            for entry in entries
        )
        rows = {1: (40.7, 18.2), 5: (38.1, 16.4)}
        if view not in ("ten", "ten@256") or not square or len(entries) not in rows:
            return ""
        networks = {1: "1 CNN", 5: "5 CNNs"}[len(entries)]
        return f"{_errors(rows[len(entries)])} ({ALEXNET}, {networks}, ten crops)"
    if all(name in CONFIGURATIONS for name in names) and all(entry.config.data.recipe == "vgg" for entry in entries):
        return _of_vgg(view, entries, "".join(sorted(CONFIGURATIONS[name] for name in names)))
    return ""


def _is_the_papers(config: Config) -> bool:
    model, data = config.model, config.data
    whole = model.width in (None, 1) and model.groups in (None, 2)
    return whole and data.crop_px == 224 and data.interpolation == "bilinear" and data.antialias


def _of_vgg(view: str, entries: Sequence[ScoredWeights], configurations: str) -> str:
    (trained, *others) = {entry.config.data.scale_px for entry in entries}
    scales = {_scales(view, entry.config) for entry in entries}
    kinds = "+".join(sorted({"150" if part.kind in ("50", "150") else part.kind for part in parse(view)}))
    if others or len(scales) != 1:
        return ""
    (tested,) = scales
    if tested is None:
        return ""
    errors, table = None, ""
    if kinds == "dense" and len(entries) == 1:
        errors = DENSE.get((configurations, trained, tested))
        table = "table 3, dense" if len(tested) == 1 else "table 4, dense"
    elif trained == JITTERED and tested == (256, 384, 512):
        errors = MULTI_CROP.get((configurations, kinds))
        table = f"table {5 if len(entries) == 1 else 6}, {kinds}"
    if errors is None:
        return ""
    trained_at = f"S={trained[0]}" if trained[0] == trained[1] else f"S=[{trained[0]};{trained[1]}]"
    at = ",".join(map(str, tested))
    return f"{_errors(errors)} ({VGG}, {table}, {' + '.join(configurations)}, {trained_at}, Q={at})"


def _scales(view: str, config: Config) -> tuple[int, ...] | None:
    """The test scales, if all parts of the view have the same."""
    own = config.data.scales()
    scales = {part.scales_px or (own.three if part.kind == "150" else (own.one,)) for part in parse(view)}
    return tuple(sorted(scales.pop())) if len(scales) == 1 else None


def _of_torchvision(entry: ScoredWeights) -> str:
    data = entry.config.data
    alike = [
        published
        for published in torchvision_entries(entry.config.model.name)
        if entry.config.model.width in (None, 1)
        and all(getattr(data, name) == value for name, value in published.data.items())
    ]
    for published in alike:
        if published.file == entry.weights.name:
            return f"{_errors(published.errors)} (torchvision's own figure for these weights)"
    return f"{_errors(alike[0].errors)} (torchvision's figure for its weights of this network)" if alike else ""


def _errors(errors: tuple[float, float]) -> str:
    return " / ".join(f"{error:g}" if error != round(error, 1) else f"{error:.1f}" for error in errors)
