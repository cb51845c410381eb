"""What there is to pack: recognises the five kinds of SOURCE and lists its files by set, with names and sizes.

In: a folder, a tar, a quoted glob, or a URL of shards. Out: `Origin`, whose fingerprint changes when a file is added,
removed, renamed or changes its size. Nothing is opened here; `sets.py` gives the files their classes and keys.

    origin = find("photos")
    origin.kind, origin.files["train"][0].name
"""

import glob
import os
import shlex
from pathlib import Path

from pipeline.data.manifest import MANIFEST
from pipeline.data.storage.remote import is_remote
from pipeline.errors import UserError
from pipeline.packing import imagenet
from pipeline.packing.existing import COMPRESSED, matching, remote_shards, shards
from pipeline.packing.folders import (
    IMAGE_NAME,
    check_level,
    class_files,
    hidden,
    holds_images,
    split_files,
    subfolders,
)
from pipeline.packing.listing import ARCHIVES, CLASS_FOLDERS, LAYOUT, SPLIT_FOLDERS, SPLITS, File, Origin
from pipeline.wording import counted


def find(source: str, split: str | None = None) -> Origin:
    """Recognise SOURCE and list its files. `split` names the set of files that do not say which one they are for.

    Raises UserError with the next action: no such source, no class folders, no images, classes a level higher or
    lower, a class without files, two folders for one set, compressed shards, a `split` for a source that names its sets
    itself.
    """
    path = Path(source)
    if is_remote(source):
        origin = remote_shards(source, split)
    elif path.is_dir():
        origin = _find_in_folder(path, split)
    elif path.is_file() and path.name in (imagenet.TRAIN, imagenet.VALIDATION, imagenet.DEVKIT):
        raise UserError(f"{path} is one of ImageNet's archives. Give the folder that holds it: {path.parent}")
    elif path.is_file() and not path.name.endswith(".tar") and not COMPRESSED.search(path.name):
        raise UserError(f"{path} is a file, neither a folder of images nor a .tar shard. Give a folder: {LAYOUT}")
    elif path.is_file() or glob.has_magic(source) or "{" in source:
        origin = shards([path] if path.is_file() else matching(source), split)
        if not origin.files:
            raise UserError(f"'{source}' matches no file. Quote the pattern and name .tar shards: 'data/train-*.tar'")
    else:
        raise UserError(f"{source} does not exist. Give a folder of images ({LAYOUT}) or of .tar shards")
    if split and (origin.kind in (SPLIT_FOLDERS, ARCHIVES) or set(origin.files) != {split}):
        raise UserError(f"--split {split}: {source} names its sets itself ({', '.join(origin.files)}). Leave it out")
    return origin


def _find_in_folder(path: Path, split: str | None) -> Origin:
    if archives := _archives(path):
        return Origin(ARCHIVES, path.resolve(), archives)
    folders = subfolders(path)
    packed = _packed_files(path) or [tar for folder in folders for tar in _packed_files(folder)]
    if packed and not any(holds_images(folder) for folder in folders):
        return shards(packed, split, path)
    if inside := next(path.glob(f"*/*/{MANIFEST}"), None):
        raise UserError(f"{path} holds a packed set, {inside.parent}. Train on that, or give the photos it was made of")
    if not folders:
        loose = sum(1 for entry in os.scandir(path) if IMAGE_NAME.search(entry.name))
        what = f"{counted(loose, 'image')} but no class folders" if loose else "no class folders and no .tar shards"
        next_action = f"Put the images of each class into a folder of its own: {LAYOUT}"
        above = Path(os.path.abspath(path)).parent
        if loose and len([folder for folder in subfolders(above) if holds_images(folder)]) > 1:
            next_action = f"To pack it as one class of several, give {shlex.quote(str(above))}. {next_action}"
        raise UserError(f"{path} holds {what}. {next_action}")

    named = [folder for folder in folders if folder.name.lower() in SPLITS]
    if named and (len(named) == len(folders) or any(subfolders(folder) for folder in named)):
        aside = [folder.name for folder in folders if folder not in named]
        for folder in named:
            check_level(folder, subfolders(folder), is_set=True)
        files, notes = split_files(path, named)
        notes += [f"left aside, no name of a set: {', '.join(aside)}"] if aside else []
        return Origin(SPLIT_FOLDERS, path.resolve(), files, tuple(notes))
    check_level(path, folders)
    listed, notes = class_files(path, "", required=True)
    return Origin(CLASS_FOLDERS, path.resolve(), {split or "train": listed}, tuple(notes))


def _archives(path: Path) -> dict[str, list[File]]:
    """ImageNet's archives in `path`, under "train", "validation" and "devkit"; empty if there is none with images."""
    names = {"train": imagenet.TRAIN, "validation": imagenet.VALIDATION, "devkit": imagenet.DEVKIT}
    there = {use: [File(name, (path / name).stat().st_size)] for use, name in names.items() if (path / name).exists()}
    if set(there) == {"devkit"} and not subfolders(path):
        raise UserError(
            f"{path} holds {imagenet.DEVKIT} alone. Put {imagenet.TRAIN} or {imagenet.VALIDATION} beside it"
        )
    return {} if set(there) <= {"devkit"} else there


def _packed_files(folder: Path) -> list[Path]:
    """The tars in `folder`, compressed ones too, so that these are refused by name instead of overlooked."""
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir() and not hidden(entry.name))
    return [folder / name for name in names if name.endswith(".tar") or COMPRESSED.search(name)]
