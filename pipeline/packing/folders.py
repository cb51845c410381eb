"""Photos in folders: which folders are classes, which are sets, and what looks like either and is not.

In: a folder. Out: its files by set, sorted, with names and sizes; UserError where the classes lie elsewhere.
"""

import glob
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.packing.listing import SPLITS, File
from pipeline.wording import counted, few

IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|jfif)$", re.IGNORECASE)
_TABLE = re.compile(r"\.(csv|tsv|jsonl?|xlsx|parquet|mat)$", re.IGNORECASE)


def check_level(path: Path, folders: list[Path], is_set: bool = False) -> None:
    """Raises UserError if `folders` of `path` (of a set in it, if `is_set`) are probably not the classes."""
    for folder in folders:
        inside = [inner.name for inner in subfolders(folder)]
        if inside and all(name.lower() in SPLITS for name in inside) and _any_image(folder):
            raise UserError(
                f"{path} holds {folder.name}, and that holds sets ({', '.join(inside)}), not the images of a class. "
                f"Give the folder that holds the sets: {shlex.quote(str(folder))}"
            )
    with_images = [folder for folder in folders if _any_image(folder)]
    if len(with_images) != 1:
        return
    only = with_images[0]
    inside = [inner.name for inner in subfolders(only)]
    tables = sorted(entry.name for entry in os.scandir(path) if _TABLE.search(entry.name))
    if inside and not _has_image(only):
        up = f"mv {shlex.quote(str(only))}/* {shlex.quote(str(path))}" if is_set else shlex.quote(str(only))
        raise UserError(
            f"{path} holds images in one folder alone, {only.name}, in folders of it ({', '.join(inside[:3])}"
            f"{', ...' if len(inside) > 3 else ''}). If these are the classes, "
            + (f"move them up: {up}" if is_set else f"give the folder that holds them: {up}")
        )
    if tables and not inside:
        raise UserError(
            f"{path} holds all images in one folder, {only.name}, beside {tables[0]}. Labels are taken from the names "
            f"of folders, not from a table: move each image into a folder named after its class, {path}/cat/1.jpg"
        )


def _has_image(folder: Path) -> bool:
    """Whether an image lies in `folder` itself."""
    return any(IMAGE_NAME.search(entry.name) for entry in os.scandir(folder))


def _any_image(folder: Path) -> bool:
    """Whether an image lies in `folder` or anywhere below it."""
    return _has_image(folder) or any(IMAGE_NAME.search(file.name) for file in _walk(folder, ""))


def split_files(path: Path, folders: list[Path]) -> tuple[dict[str, list[File]], list[str]]:
    files: dict[str, list[File]] = {}
    notes: list[str] = []
    for folder in sorted(folders, key=lambda folder: list(SPLITS).index(folder.name.lower())):
        split = SPLITS[folder.name.lower()]
        if split in files:
            raise UserError(f"{path} has two folders for {split}; one is {folder}. Merge or rename one of them")
        if not subfolders(folder) and split == "test":
            notes.append(f"left aside, no class folders: {folder.name}")  # Kaggle's test images have no labels
        elif not subfolders(folder) and split == "validation":
            files[split] = [file for file in _walk(folder, f"{folder.name}/") if IMAGE_NAME.search(file.name)]
        else:
            files[split], aside = class_files(folder, f"{folder.name}/", required=split == "train")
            notes += aside
    for split, listed in files.items():
        if not listed:
            raise UserError(f"{path}: the {split} folder holds no files. Fill it with class folders, or remove it")
    return files, notes


def class_files(folder: Path, prefix: str, required: bool) -> tuple[list[File], list[str]]:
    """The files under the class folders of `folder`; with `required`, each of them must hold one."""
    if not subfolders(folder):
        raise UserError(f"{folder} holds no class folders. Put the images of each class into one: {folder}/cat/1.jpg")
    files: list[File] = []
    notes: list[str] = []
    classes = subfolders(folder)
    if required and not any(map(_has_image, classes)):
        inner = subfolders(classes[0])
        example = f" ({classes[0].name}/{inner[0].name})" if inner else ""
        names = [folder.name for folder in classes]
        notes.append(f"the folders of {folder.name} hold folders{example}: the classes are {few(names)}")
    for class_folder in classes:
        listed = list(_walk(class_folder, f"{prefix}{class_folder.name}/"))
        if required and not listed:
            raise UserError(f"{class_folder} holds no files. Put images of this class in, or remove the folder")
        files += listed
    loose = sum(1 for entry in os.scandir(folder) if entry.is_file() and IMAGE_NAME.search(entry.name))
    notes += [f"left aside, in no class folder: {counted(loose, 'image')} directly in {folder.name}"] if loose else []
    return files, notes


def _walk(folder: Path | str, prefix: str, above: frozenset = frozenset()) -> Iterator[File]:
    """All visible files under `folder`, sorted; links are followed, as ImageFolder does."""
    place = os.stat(folder)
    above |= {(place.st_dev, place.st_ino)}  # a link back up would never end
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if hidden(entry.name):
            continue
        if entry.is_dir():
            below = entry.stat()
            if (below.st_dev, below.st_ino) not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above)
        elif entry.is_file():
            yield File(prefix + entry.name, entry.stat().st_size)
        elif entry.is_symlink():
            yield File(prefix + entry.name, -1)


def subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not hidden(entry.name))


def holds_images(folder: Path) -> bool:
    return any(IMAGE_NAME.search(name) for level in ("*", "*/*") for name in glob.iglob(level, root_dir=folder))


def hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
