"""The class list of shards that exist, in which every label must be.

In: the scanned shards of each set. Out: the list; labels that are names become numbers.
"""

from pipeline.data.layout import numbers
from pipeline.errors import UserError
from pipeline.packing.listing import Origin

FEW_CLASSES = 1000  # a few shards of ImageNet may have fewer samples than it has classes


def check_labels(origin: Origin, shards: dict[str, list], classes: list[str] | None) -> list[str]:
    """The class list of existing shards, with every label in it; without one, the labels are the names. Labels that are
    names become numbers here, in the order of the alphabet."""
    if not classes:
        classes = _number_names(origin, shards)
    labels = [
        (label, f"{origin.url or origin.root}/{shard.name}", key)
        for rows in shards.values()
        for shard, columns in rows
        for label, key in zip(columns["label"], columns["key"], strict=True)
    ]
    num_classes = len(classes) if classes else max(labels)[0] + 1
    if not classes and num_classes > max(len(labels), FEW_CLASSES):
        label, path, key = max(labels)
        raise UserError(
            f"{path}: sample '{key.decode()}' has label {label}, but there are only {len(labels)} samples. Mend it, or "
            f"give the list of classes with --classes"
        )
    for label, path, key in labels:
        if not 0 <= label < num_classes:
            raise UserError(
                f"{path}: sample '{key.decode()}' has label {label}, outside 0..{num_classes - 1}. "
                + (
                    "Do these labels count from 1? Write them from 0, or give a list that begins with a class for 0"
                    if label == num_classes and not any(number == 0 for number, *_ in labels)
                    else "Give the right list with --classes, or mend the shard"
                )
            )
    return classes or [str(label) for label in range(num_classes)]


def _number_names(origin: Origin, shards: dict[str, list]) -> list[str] | None:
    """The class list of labels that are names, which become its numbers; None if all are numbers already."""
    columns = [columns for rows in shards.values() for _, columns in rows]
    kinds = {type(label) for of_shard in columns for label in of_shard["label"]}
    if str not in kinds:
        return None
    if int in kinds:
        name, number = (
            next(x for of_shard in columns for x in of_shard["label"] if isinstance(x, kind)) for kind in (str, int)
        )
        raise UserError(
            f"{origin.url or origin.root}: some labels are names ('{name}'), others numbers ({number}). Give the list "
            f"of classes with --classes"
        )
    classes = sorted({label for of_shard in columns for label in of_shard["label"]})
    known = numbers(classes)
    assert known is not None
    for of_shard in columns:
        of_shard["label"] = [known[label] for label in of_shard["label"]]
    return classes
