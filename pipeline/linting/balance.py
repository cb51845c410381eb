"""How many images each class has.

In: counts by label, the class list if there is one. Out: figures for lint.json, and findings about empty classes.
"""

from itertools import islice
from typing import Any

from pipeline.data.plausible import each_its_own, from_one
from pipeline.linting.findings import Findings

FEW_CLASSES = 1000  # a few shards of ImageNet may have fewer samples than it has classes
IMBALANCE = 10  # times as many images in the largest class as in the smallest


def balance(counts: dict[int, int], classes: tuple[str, ...] | None, findings: Findings) -> dict[str, Any]:
    """Without a class list, every label up to the largest is a class, named by its number."""
    num_classes = len(classes) if classes else max(counts, default=-1) + 1
    num_empty = num_classes - len(counts)
    num_images = sum(counts.values())
    if classes is None and num_classes > max(num_images, FEW_CLASSES):
        findings.add("label", "", "", f"the largest label is {max(counts)}, but there are only {num_images} images")
        num_classes, num_empty = len(counts), 0
    if num_images and num_classes == 1:
        findings.add("one_class", "", "", "every image is of one class")
    elif each_its_own(len(counts), num_images):
        findings.add("own_class", "", "", f"{num_images:,} images, each with a label of its own")
    elif num_empty == 1 and 0 not in counts and from_one(num_classes, [0], classes):
        findings.add("from_one", "", "", f"no image has label 0, all of 1..{num_classes - 1} are there")
    empty = (label for label in range(num_classes) if label not in counts) if num_empty else ()
    for label in islice(empty, findings.listed):
        named = f" ('{classes[label]}')" if classes else ""
        findings.add("empty_class", "", "", f"class {label}{named} has no image")
    if num_empty > findings.listed:
        findings.counts["empty_class"] = num_empty
    listed: list[dict[str, Any]] = [
        {"label": label, "name": classes[label] if classes else str(label), "count": counts[label]}
        for label in sorted(counts)
    ]
    if not listed:
        return {"num_classes": num_classes, "num_empty": num_empty, "largest": None, "smallest": None, "counts": []}
    largest = max(listed, key=lambda row: row["count"])
    smallest = min(listed, key=lambda row: row["count"])
    if largest["count"] >= IMBALANCE * smallest["count"]:
        few, many = (f"'{row['name']}' has {row['count']:,}" for row in (smallest, largest))
        findings.add("imbalance", "", "", f"{many} images, {few}")
    return {
        "num_classes": num_classes,
        "num_empty": num_empty,
        "largest": largest,
        "smallest": smallest,
        "counts": listed,
    }
