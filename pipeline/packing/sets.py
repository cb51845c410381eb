"""Which image goes into which set, under which class and key.

In: the files that `sources.find` lists. Out: the class list that all sets share, and the `Photo`s of each set.
A class's label is its place in the list: the sorted names of the training classes, or of all where
no image is for training, unless a list is given.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pipeline.data.manifest import MANIFEST
from pipeline.errors import UserError
from pipeline.packing import imagenet
from pipeline.packing.listing import ARCHIVES, CLASS_TARS, SPLIT_FOLDERS, File, Origin


class Photo(NamedTuple):
    """One image to pack: `size` bytes at `offset` of `file` (relative to SOURCE); `name` is what a person calls it."""

    name: str
    file: str
    offset: int
    size: int
    class_name: str


@dataclass(frozen=True)
class Sets:
    """`classes[label]` is a class's name; `sources` holds those of each set, in the order of the listing."""

    classes: list[str]
    sources: dict[str, list[Photo]]


def read_classes(path: Path) -> list[str]:
    """The class list in a text file (one name a line) or of a packed set. Raises UserError, naming the file."""
    manifest = next((folder / MANIFEST for folder in (path, path / "train") if (folder / MANIFEST).exists()), None)
    try:
        if manifest:
            classes = json.loads(manifest.read_text())["classes"]
        else:
            classes = [line.strip() for line in path.read_text().rstrip().splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--classes {path} cannot be read ({error}). Give a text file, one class a line, or a packed set's folder"
        ) from None
    counts = Counter(map(one_spelling, classes))
    if not all(classes) or len(counts) < len(classes) or not classes:
        twice = next((name for name, times in counts.items() if times > 1), "")
        what = f"names '{twice}' twice" if twice else "has an empty line" if classes else "is empty"
        raise UserError(f"--classes {path} {what}. Give each class one line")
    return classes


def one_spelling(name: str) -> str:
    """Unicode has two spellings of many letters, which look the same; file systems keep either. This is NFC."""
    return unicodedata.normalize("NFC", name)


def share(seed: int, name: str) -> float:
    """A number in 0..1 that depends on the seed and this name alone, so other files come and go without moving it."""
    return int.from_bytes(_digest(f"{seed}/{name}")) / 2**64


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()


def arrange(
    origin: Origin,
    classes: list[str] | None = None,
    val_labels: Path | None = None,
    holdout: float = 0.0,
    seed: int = 0,
) -> Sets:
    """Give each file of `origin` (anything but shards) its class and set.

    `holdout` moves that share of each class's training images, in 0..1, to validation. Raises UserError: a class that
    the list or training lacks, validation images without labels, a set left without images.
    """
    if origin.kind == CLASS_TARS:
        by_set, implied = {name: list(_from_tars(listed)) for name, listed in origin.files.items()}, None
    elif origin.kind == ARCHIVES:
        by_set, implied = _from_archives(origin, val_labels)
    else:
        by_set = {name: list(_from_folders(origin, name, val_labels)) for name in origin.files}
        implied = None
    if classes is None and (implied is None or "train" in by_set):
        # Without training images it is a set to score on, whose classes launch.evaluate knows by name.
        known = by_set.get("train") or chain(*by_set.values())
        classes = sorted({source.class_name for source in known})
    classes = classes or implied or []
    spelt = {one_spelling(name): name for name in classes}  # as the list spells it, which other sets may have
    for name, members in by_set.items():
        by_set[name] = [
            member._replace(class_name=spelt.get(member.class_name, member.class_name)) for member in members
        ]
        _check_classes(name, by_set[name], classes)
    if holdout:
        train = by_set["train"]
        held = _held_out(train, holdout, seed)
        by_set["validation"] = [source for source in train if source in held]
        by_set["train"] = [source for source in train if source not in held]
    for name, members in by_set.items():
        if not members:
            why = f" (--holdout {holdout})" if holdout else ""
            raise UserError(f"{origin.root}: the set '{name}' would hold no images{why}. Give it some, or leave it out")
    return Sets(classes, by_set)


def _held_out(train: list[Photo], holdout: float, seed: int) -> set[Photo]:
    """The share `holdout` of each class, but never all of it. The fraction of an image that is left over counts as one
    in as many classes as it says, chosen by the class's name, so that other classes come and go without moving any."""
    of_class: dict[str, list[Photo]] = defaultdict(list)
    for source in train:
        of_class[source.class_name].append(source)
    held: set[Photo] = set()
    for name, members in of_class.items():
        count = min(len(members) - 1, int(len(members) * holdout + share(seed, name)))
        held.update(sorted(members, key=lambda source: share(seed, source.name))[:count])
    return held


def _check_classes(name: str, members: list[Photo], classes: list[str]) -> None:
    known = set(classes)
    strange = sorted({source.class_name for source in members} - known)
    if strange:
        example = next(source.name for source in members if source.class_name == strange[0])
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(
            f"the {name} images have the class '{strange[0]}'{more} (for example {example}), which is not among the "
            f"{len(classes)} classes of the training set or of --classes. Rename or remove it, or give its list"
        )


def _from_folders(origin: Origin, name: str, val_labels: Path | None) -> Iterator[Photo]:
    depth = 1 if origin.kind == SPLIT_FOLDERS else 0
    files = origin.files[name]
    if depth and all(file.name.count("/") == 1 for file in files):  # Kaggle's val: images without class folders
        if val_labels is None:
            folder = origin.root / files[0].name.partition("/")[0]
            raise UserError(
                f"{folder} holds no class folders. Put the images of each class into one ({folder}/cat/1.jpg), or, for "
                f"ImageNet's own validation images, give --val-labels LOC_val_solution.csv"
            )
        files = sorted(files)
        synsets = imagenet.validation_synsets([file.name for file in files], val_labels, None)
        yield from (Photo(f.name, f.name, 0, f.size, synset) for f, synset in zip(files, synsets, strict=True))
        return
    if val_labels is not None and name == "validation":
        raise UserError(f"--val-labels {val_labels}: the validation images lie in class folders already. Leave it out")
    for file in files:
        yield Photo(file.name, file.name, 0, file.size, one_spelling(file.name.split("/")[depth]))


def _from_tars(listed: list[File]) -> Iterator[Photo]:
    for file in listed:
        name = f"{file.tar}/{file.name}"
        yield Photo(name, file.tar, file.offset, file.size, one_spelling(file.name.split("/")[0]))


def _from_archives(origin: Origin, val_labels: Path | None) -> tuple[dict[str, list[Photo]], list[str] | None]:
    devkit = origin.root / imagenet.DEVKIT if "devkit" in origin.files else None
    by_set: dict[str, list[Photo]] = {}
    if "train" in origin.files:
        members: Iterable[imagenet.Member] = imagenet.train_images(origin.root / imagenet.TRAIN)
        by_set["train"] = [Photo(m.name, imagenet.TRAIN, m.offset, m.size, m.synset) for m in members]
    if "validation" in origin.files:
        images = imagenet.validation_images(origin.root / imagenet.VALIDATION)
        if not images:
            raise UserError(f"{origin.root / imagenet.VALIDATION} holds no images. Fetch it again")
        synsets = imagenet.validation_synsets([member.name for member in images], val_labels, devkit)
        by_set["validation"] = [
            Photo(m.name, imagenet.VALIDATION, m.offset, m.size, synset)
            for m, synset in zip(images, synsets, strict=True)
        ]
    return by_set, imagenet.devkit_synsets(devkit) if devkit else None


def keyed(members: list[Photo]) -> Iterator[tuple[str, Photo]]:
    """Each source with its key, class/stem: no dots (WebDataset's keys end at the first), at most 90 bytes, unique."""
    seen: set[str] = set()
    for source in members:
        class_name, stem = _clean(source.class_name), _clean(_stem(source.name))
        key = f"{class_name}/{stem}"
        if key in seen or len(key.encode()) > 90:  # a USTAR name has 100 bytes
            key = f"{_cut(class_name, 40)}/{_cut(stem, 32)}-{_digest(source.name).hex()}"
        seen.add(key)
        yield key, source


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    return base.rpartition(".")[0] or base


def _clean(text: str) -> str:
    return re.sub(r"[^\w-]", "_", text)


def _cut(text: str, num_bytes: int) -> str:
    return text.encode()[:num_bytes].decode(errors="ignore")
