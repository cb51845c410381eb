"""ImageNet's own archives: where each image lies inside them, and the labels of the validation images.

In: ILSVRC2012_img_train.tar (a tar of one tar per class), ILSVRC2012_img_val.tar, the development kit or a label file.
Out: (name, offset, size, WordNet id) of every image, offsets counted in the outer archive, so nothing is unpacked.
"""

import csv
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

_LABEL_HELP = (
    f"Put {DEVKIT} beside the images, or give --val-labels with one WordNet id per line in the order of the images, "
    f"or Kaggle's LOC_val_solution.csv"
)


class Member(NamedTuple):
    """One image: `size` bytes at `offset` of the archive; `name` is archive/member, `synset` empty if not known."""

    name: str
    offset: int
    size: int
    synset: str


def train_images(archive: Path) -> Iterator[Member]:
    """The images of the archive's inner tars. Raises UserError for a damaged archive or one with no inner tars."""
    any_class = False
    with open(archive, "rb") as raw:
        for name, offset, size in list(_members(archive, raw, 0, archive.stat().st_size)):
            synset, dot, ending = name.rpartition("/")[2].rpartition(".")
            if (dot, ending) != (".", "tar"):
                continue
            for image, image_offset, image_size in _members(archive, raw, offset, size):
                any_class = True
                yield Member(f"{archive.name}/{name}/{image}", image_offset, image_size, synset)
    if not any_class:
        raise UserError(f"{archive} holds no tars of images, one per class. Fetch ImageNet's {TRAIN} again")


def validation_images(archive: Path) -> list[Member]:
    """The images in the order of their names, which is the order of the labels; no synsets yet."""
    with open(archive, "rb") as raw:
        members = sorted(_members(archive, raw, 0, archive.stat().st_size))
    return [Member(f"{archive.name}/{name}", offset, size, "") for name, offset, size in members]


def _members(archive: Path, raw: io.BufferedReader, start: int, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, absolute offset, size) of the files in the tar that starts at `start` of `raw`."""
    try:
        raw.seek(start)
        with tarfile.open(fileobj=raw, mode="r:") as tar:  # counts offsets from the start of `raw`
            for member in tar:
                if member.offset >= start + size:
                    break  # an inner tar without its end marks: this is the outer one's next member
                if member.offset_data + member.size > start + size:
                    raise tarfile.ReadError(f"'{member.name}' ends after the end of the archive")
                if member.isfile() and not Path(member.name).name.startswith("."):
                    yield member.name, member.offset_data, member.size
                tar.members = []  # type: ignore[attr-defined]  # it would keep all 1.28 M of them
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged or was not fetched to its end ({error}). Fetch it again") from None


def validation_synsets(names: list[str], labels: Path | None, devkit: Path | None) -> list[str]:
    """The WordNet id of each image; `names` must be sorted.

    Raises UserError: no labels, as many labels as images are not there, an image that the labels lack, ILSVRC's own
    numbers (1..1000) without the development kit that says which class each of them is.
    """
    if labels is not None:
        given = _read_labels(labels)
        where = labels
    elif devkit is not None:
        given = _devkit_text(devkit, "ILSVRC2012_validation_ground_truth.txt").decode().split()
        where = devkit
    else:
        raise UserError(f"{names[0]}: no labels for the validation images. {_LABEL_HELP}")
    if isinstance(given, dict):
        stems = [Path(name).stem for name in names]
        missing = next((stem for stem in stems if stem not in given), None)
        if missing:
            raise UserError(f"{where} has no line for the image '{missing}'. {_LABEL_HELP}")
        return [given[stem] for stem in stems]
    if len(given) != len(names):
        raise UserError(f"{where} has {len(given)} labels, but there are {len(names)} validation images. {_LABEL_HELP}")
    if not all(label.isascii() and label.isdecimal() for label in given):
        return given
    if devkit is None:
        raise UserError(
            f"{where} holds ILSVRC's own class numbers ('{given[0]}', ...), not places in the sorted WordNet ids; "
            f"only the development kit says which class each of them is. {_LABEL_HELP}"
        )
    synset_of = _synset_numbers(devkit)
    unknown = next((label for label in given if int(label) not in synset_of), None)
    if unknown:
        raise UserError(f"{where}: the class number {unknown} is not in {devkit}. {_LABEL_HELP}")
    return [synset_of[int(label)] for label in given]


def _read_labels(path: Path) -> list[str] | dict[str, str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--val-labels {path} cannot be read ({error}). {_LABEL_HELP}") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--val-labels {path} is empty. {_LABEL_HELP}")
    if lines[0].replace(" ", "") == "ImageId,PredictionString":
        # 'n01978287 85 1 499 272 n01978287 ...': the class, then boxes
        return {row[0]: row[1].split()[0] for row in csv.reader(lines[1:]) if len(row) > 1 and row[1].strip()}
    wrong = next((line for line in lines if not re.fullmatch(r"\S+", line)), None)
    if wrong:
        raise UserError(f"--val-labels {path}: the line '{wrong[:60]}' is not one class name. {_LABEL_HELP}")
    return lines


def devkit_synsets(devkit: Path) -> list[str]:
    """The classes of the challenge, sorted: label 0..999 by the usual order."""
    return sorted(_synset_numbers(devkit).values())


def _synset_numbers(devkit: Path) -> dict[int, str]:
    """ILSVRC's class number -> WordNet id, for the leaves of the tree (the others are no classes)."""
    import numpy as np
    import scipy.io

    try:
        table = scipy.io.loadmat(io.BytesIO(_devkit_text(devkit, "meta.mat")), squeeze_me=True)["synsets"]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"])) for row in np.atleast_1d(table)]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{devkit}: its meta.mat cannot be read ({error}). Fetch the development kit again") from None
    return {number: synset for number, synset, num_children in rows if num_children == 0}


def _devkit_text(devkit: Path, name: str) -> bytes:
    try:
        with tarfile.open(devkit, "r:*") as tar:
            for member in tar:
                if member.name.endswith(f"data/{name}"):
                    file = tar.extractfile(member)
                    return file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{devkit} cannot be read ({error}). Fetch the development kit again") from None
    raise UserError(f"{devkit} has no data/{name}, so it is not the development kit of ILSVRC2012. Fetch it again")
