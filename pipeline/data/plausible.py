"""What a set's labels and images make doubtful: nothing wrong in itself, but seldom meant.

In: loaded indexes. Out: sentences, each with what to do next. Packing and `launch.train --check` tell them;
lint has findings of its own about the same.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.index import Index

NAMED = 5  # classes that a sentence names
FEW = 10  # classes, of which a tiny set may well have one image each


def doubts(train: Index | None, *others: Index) -> list[str]:
    """Sentences about a training set, and about others that are scored on. Empty if nothing is odd."""
    texts = [] if train is None else _of_labels(train)
    for other in others:
        texts += _of_absence(other) + ([] if train is None else _of_sharing(train, other))
    return texts


def from_one(num_classes: int, empty: Sequence[int], names: Sequence[str] | None) -> bool:
    """Whether labels seem to count from 1: of several classes without names, 0 alone has no image."""
    return num_classes > 2 and list(empty) == [0] and (names is None or names[0] == "0")


def each_its_own(num_labels: int, num_images: int) -> bool:
    """Whether a key or a file name seems to have been taken for the label."""
    return num_labels == num_images > FEW


def _empty(index: Index) -> np.ndarray:
    """The classes without an image."""
    return np.flatnonzero(np.bincount(index.label, minlength=len(index.classes)) == 0)


def _of_labels(index: Index) -> list[str]:
    most = len(index.classes) - 1
    if not most:
        return [f"{index.folder} has one class alone, '{index.classes[0]}': nothing can be learnt. Pack it with others"]
    if from_one(most + 1, _empty(index).tolist(), index.classes):
        return [
            f"{index.folder}: no image has label 0, but all of 1..{most} are there: do these labels count from 1? The "
            f"network gets an output for class 0 too. Write labels from 0 and pack again"
        ]
    if each_its_own(len(np.unique(index.label)), index.num_samples):
        return [
            f"{index.folder}: each of its {index.num_samples:,} images is a class of its own. If the label is a key or "
            f"a file name, name what holds the class with --label, and pack again"
        ]
    return _of_absence(index)


def _of_absence(index: Index) -> list[str]:
    empty = _empty(index)
    if not len(empty):
        return []
    names = ", ".join(f"'{index.classes[label]}'" for label in empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
    what = f"{index.folder}: no image of {len(empty):,} of its {len(index.classes):,} classes ({names})"
    if index.classes[empty[0]] == str(empty[0]):  # unnamed: each number up to the largest label is a class
        return [f"{what}. If labels have gaps, number them from 0 without any, and pack again"]
    return [f"{what}. Add some, or give a class list without them"]


def _of_sharing(train: Index, other: Index) -> list[str]:
    if train.digest is None or other.digest is None or train.digest is other.digest:
        return []
    shared = np.flatnonzero(np.isin(other.digest, train.digest))
    if not len(shared):
        return []
    return [
        f"{len(shared):,} of the {len(other):,} images of {other.folder} are in {train.folder} too, for example "
        f"'{other.key_of(int(shared[0]))}': scores on them say nothing of new images. launch.lint of both lists them"
    ]
