"""What there is to pack: recognises the five kinds of SOURCE and lists its files by set, with names and sizes.

In: a folder, a tar, a quoted glob, or a URL of shards. Out: `Found`, whose fingerprint changes when a file is added,
removed, renamed or changes its size. Nothing is opened here; `sets.py` gives the files their classes and keys.

    found = find("photos")
    found.kind, found.files["train"][0].name
"""

import glob
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.data.remote import is_remote, list_files
from pipeline.errors import UserError
from pipeline.packing import imagenet, tars

CLASS_FOLDERS = "a folder of class folders"
SPLIT_FOLDERS = "split folders of class folders"
ARCHIVES = "ImageNet's own archives"
CLASS_TARS = "tars of class folders"
SHARDS = "WebDataset shards"

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|jfif)$", re.IGNORECASE)
_TABLE = re.compile(r"\.(csv|tsv|jsonl?|xlsx|parquet|mat)$", re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_LAYOUT = "SOURCE/cat/1.jpg, or SOURCE/train/cat/1.jpg with SOURCE/val beside it"


class File(NamedTuple):
    """`name` relative to the source, with slashes; `size` in bytes, -1 for a link that leads nowhere. In a tar: its
    `offset` there, and the tar's own name."""

    name: str
    size: int
    offset: int = 0
    tar: str = ""


@dataclass(frozen=True)
class Found:
    """The files of each set (for archives: the archives). `notes` say what was left aside; shards that are elsewhere
    have a `url` that their names are relative to, in place of the root; `compressed` if some of them are."""

    kind: str
    root: Path
    files: dict[str, list[File]]
    notes: tuple[str, ...] = ()
    url: str | None = None
    compressed: bool = False

    @property
    def fingerprint(self) -> str:
        where = [self.url or str(self.root)] if self.kind == SHARDS else []  # whose index points there
        files = {name: [file[:2] for file in listed] for name, listed in self.files.items()}
        listing = json.dumps([self.kind, *where, files]).encode()
        return hashlib.sha256(listing).hexdigest()


def find(source: str, split: str | None = None) -> Found:
    """Recognise SOURCE and list its files. `split` names the set of files that do not say which one they are for.

    Raises UserError with the next action: no such source, no class folders, no images, classes a level higher or
    lower, a class without files, two folders for one set, compressed shards, a `split` for a source that names its sets
    itself.
    """
    path = Path(source)
    if is_remote(source):
        found = _remote_shards(source, split)
    elif path.is_dir():
        found = _find_in_folder(path, split)
    elif path.is_file() and path.name in (imagenet.TRAIN, imagenet.VALIDATION, imagenet.DEVKIT):
        raise UserError(f"{path} is one of ImageNet's archives. Give the folder that holds it: {path.parent}")
    elif path.is_file() and not path.name.endswith(".tar") and not _COMPRESSED.search(path.name):
        raise UserError(f"{path} is a file, neither a folder of images nor a .tar shard. Give a folder: {_LAYOUT}")
    elif path.is_file() or glob.has_magic(source) or "{" in source:
        found = _shards([path] if path.is_file() else _matching(source), split)
        if not found.files:
            raise UserError(f"'{source}' matches no file. Quote the pattern and name .tar shards: 'data/train-*.tar'")
    else:
        raise UserError(f"{source} does not exist. Give a folder of images ({_LAYOUT}) or of .tar shards")
    if split and (found.kind in (SPLIT_FOLDERS, ARCHIVES) or set(found.files) != {split}):
        raise UserError(f"--split {split}: {source} names its sets itself ({', '.join(found.files)}). Leave it out")
    return found


def _find_in_folder(path: Path, split: str | None) -> Found:
    if archives := _archives(path):
        return Found(ARCHIVES, path.resolve(), archives)
    folders = _subfolders(path)
    packed = _packed_files(path) or [tar for folder in folders for tar in _packed_files(folder)]
    if packed and not any(_holds_images(folder) for folder in folders):
        return _shards(packed, split, path)
    if not folders:
        loose = sum(1 for entry in os.scandir(path) if _IMAGE_NAME.search(entry.name))
        what = f"{loose} images but no class folders" if loose else "no class folders and no .tar shards"
        next_action = f"Put the images of each class into a folder of its own: {_LAYOUT}"
        above = Path(os.path.abspath(path)).parent
        if loose and len([folder for folder in _subfolders(above) if _holds_images(folder)]) > 1:
            next_action = f"To pack it as one class of several, give {shlex.quote(str(above))}. {next_action}"
        raise UserError(f"{path} holds {what}. {next_action}")

    named = [folder for folder in folders if folder.name.lower() in SPLITS]
    if named and (len(named) == len(folders) or any(_subfolders(folder) for folder in named)):
        aside = [folder.name for folder in folders if folder not in named]
        for folder in named:
            _check_level(folder, _subfolders(folder), is_set=True)
        files, notes = _split_files(path, named)
        notes += [f"left aside, no name of a set: {', '.join(aside)}"] if aside else []
        return Found(SPLIT_FOLDERS, path.resolve(), files, tuple(notes))
    _check_level(path, folders)
    listed, notes = _class_files(path, "", required=True)
    return Found(CLASS_FOLDERS, path.resolve(), {split or "train": listed}, tuple(notes))


def _check_level(path: Path, folders: list[Path], is_set: bool = False) -> None:
    """Raises UserError if `folders` of `path` (of a set in it, if `is_set`) are probably not the classes."""
    for folder in folders:
        inside = [inner.name for inner in _subfolders(folder)]
        if inside and all(name.lower() in SPLITS for name in inside) and _any_image(folder):
            raise UserError(
                f"{path} holds {folder.name}, and that holds sets ({', '.join(inside)}), not the images of a class. "
                f"Give the folder that holds the sets: {shlex.quote(str(folder))}"
            )
    with_images = [folder for folder in folders if _any_image(folder)]
    if len(with_images) != 1:
        return
    only = with_images[0]
    inside = [inner.name for inner in _subfolders(only)]
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
    return any(_IMAGE_NAME.search(entry.name) for entry in os.scandir(folder))


def _any_image(folder: Path) -> bool:
    """Whether an image lies in `folder` or anywhere below it."""
    return _has_image(folder) or any(_IMAGE_NAME.search(file.name) for file in _walk(folder, ""))


def _archives(path: Path) -> dict[str, list[File]]:
    """ImageNet's archives in `path`, under "train", "validation" and "devkit"; empty if there is none with images."""
    names = {"train": imagenet.TRAIN, "validation": imagenet.VALIDATION, "devkit": imagenet.DEVKIT}
    there = {use: [File(name, (path / name).stat().st_size)] for use, name in names.items() if (path / name).exists()}
    if set(there) == {"devkit"} and not _subfolders(path):
        raise UserError(
            f"{path} holds {imagenet.DEVKIT} alone. Put {imagenet.TRAIN} or {imagenet.VALIDATION} beside it"
        )
    return {} if set(there) <= {"devkit"} else there


def _split_files(path: Path, folders: list[Path]) -> tuple[dict[str, list[File]], list[str]]:
    files: dict[str, list[File]] = {}
    notes: list[str] = []
    for folder in sorted(folders, key=lambda folder: list(SPLITS).index(folder.name.lower())):
        split = SPLITS[folder.name.lower()]
        if split in files:
            raise UserError(f"{path} has two folders for {split}; one is {folder}. Merge or rename one of them")
        if not _subfolders(folder) and split == "test":
            notes.append(f"left aside, no class folders: {folder.name}")  # Kaggle's test images have no labels
        elif not _subfolders(folder) and split == "validation":
            files[split] = [file for file in _walk(folder, f"{folder.name}/") if _IMAGE_NAME.search(file.name)]
        else:
            files[split], aside = _class_files(folder, f"{folder.name}/", required=split == "train")
            notes += aside
    for split, listed in files.items():
        if not listed:
            raise UserError(f"{path}: the {split} folder holds no files. Fill it with class folders, or remove it")
    return files, notes


def _class_files(folder: Path, prefix: str, required: bool) -> tuple[list[File], list[str]]:
    """The files under the class folders of `folder`; with `required`, each of them must hold one."""
    if not _subfolders(folder):
        raise UserError(f"{folder} holds no class folders. Put the images of each class into one: {folder}/cat/1.jpg")
    files: list[File] = []
    notes: list[str] = []
    classes = _subfolders(folder)
    if required and not any(map(_has_image, classes)):
        inner = _subfolders(classes[0])
        example = f" ({classes[0].name}/{inner[0].name})" if inner else ""
        notes.append(f"the folders of {folder.name} hold folders{example}: the classes are {', '.join(_few(classes))}")
    for class_folder in classes:
        listed = list(_walk(class_folder, f"{prefix}{class_folder.name}/"))
        if required and not listed:
            raise UserError(f"{class_folder} holds no files. Put images of this class in, or remove the folder")
        files += listed
    loose = sum(1 for entry in os.scandir(folder) if entry.is_file() and _IMAGE_NAME.search(entry.name))
    notes += [f"left aside, in no class folder: {loose} images directly in {folder.name}"] if loose else []
    return files, notes


def _few(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders[:3]] + ["..."] * (len(folders) > 3)


def _walk(folder: Path | str, prefix: str, above: frozenset = frozenset()) -> Iterator[File]:
    """All visible files under `folder`, sorted; links are followed, as ImageFolder does."""
    place = os.stat(folder)
    above |= {(place.st_dev, place.st_ino)}  # a link back up would never end
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            below = entry.stat()
            if (below.st_dev, below.st_ino) not in above:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above)
        elif entry.is_file():
            yield File(prefix + entry.name, entry.stat().st_size)
        elif entry.is_symlink():
            yield File(prefix + entry.name, -1)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))


def _packed_files(folder: Path) -> list[Path]:
    """The tars in `folder`, compressed ones too, so that these are refused by name instead of overlooked."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not _hidden(entry.name))
    return [folder / name for name in names if name.endswith(".tar") or _COMPRESSED.search(name)]


def _holds_images(folder: Path) -> bool:
    return any(_IMAGE_NAME.search(name) for level in ("*", "*/*") for name in glob.iglob(level, root_dir=folder))


def _shards(paths: list[Path], split: str | None, root: Path | None = None) -> Found:
    """Existing shards on this machine."""
    for path in sorted(paths):
        if not path.name.endswith(".tar") and not _COMPRESSED.search(path.name):
            raise UserError(f"{path} is no .tar shard. Give a pattern that matches shards alone: 'data/*.tar'")
    if not paths:
        return Found(SHARDS, Path(), {})
    base = Path(os.path.realpath(root or os.path.commonpath([path.parent.absolute() for path in paths])))
    names = sorted(os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), base) for path in paths)
    by_set = _by_set([File(name, (base / name).stat().st_size) for name in names], str(base), split)
    first = base / names[0]
    compressed = [name for name in names if tars.opener(base / name)]
    if not tars.holds_class_folders(first):
        return Found(SHARDS, base, by_set, compressed=bool(compressed))
    if compressed:
        raise UserError(
            f"{first} holds class folders and is compressed. Unpack it and pack the folder: mkdir photos && "
            f"tar -xf {shlex.quote(str(first))} -C photos"
        )
    return Found(CLASS_TARS, base, *_in_class_tars(base, by_set))


def _matching(source: str) -> list[Path]:
    """The files of a pattern with wildcards or braces. Raises UserError for one of the braces that is not there."""
    found: list[Path] = []
    for pattern in _braces(source):
        files = [Path(name) for name in glob.glob(pattern, recursive=True)]
        if not files and pattern != source:
            raise UserError(f"{pattern} does not exist, which '{source}' names. Fetch it, or change the pattern")
        found += files
    return found


def _braces(source: str) -> list[str]:
    """Numbers in braces as WebDataset writes them: {000000..001281}."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(source))
    except ValueError:
        raise UserError(f"'{source}' has a brace without its other one") from None


def _in_class_tars(base: Path, by_set: dict[str, list[File]]) -> tuple[dict[str, list[File]], tuple[str, ...]]:
    """The images by set: that of the folders in the tar, or else that of its name; their names begin with the class."""
    files: dict[str, list[File]] = {}
    aside: set[str] = set()
    for set_of_tar, listed in by_set.items():
        for tar in listed:
            images = list({image.name: image for image in tars.images(base / tar.name)}.values())  # the last one counts
            cut = 0
            if len({image.name.split("/")[0] for image in images}) == 1 and images[0].name.count("/") > 1:
                top = images[0].name.split("/")[0]
                cut = 0 if top.lower() in SPLITS else len(top) + 1  # one folder around all
            in_sets = [image.name[cut:] for image in images if image.name[cut:].split("/")[0].lower() in SPLITS]
            has_sets = any(name.count("/") > 1 for name in in_sets)  # else train/ is a class, of vehicles
            for image in images:
                head, _, rest = image.name[cut:].partition("/")
                name = SPLITS.get(head.lower(), "") if has_sets else set_of_tar
                within = rest if has_sets else image.name[cut:]
                if not name or "/" not in within:
                    aside.add(head if not name else f"{head}/{within}")
                    continue
                files.setdefault(name, []).append(File(within, image.size, image.offset, tar.name))
    if not files:
        raise UserError(f"{base}: its tars hold no image in a folder of a class. {_LAYOUT}")
    notes = (f"left aside, in no class folder: {', '.join(sorted(aside)[:5])}",) if aside else ()
    return {name: files[name] for name in ("train", "validation", "test") if name in files}, notes


def _remote_shards(source: str, split: str | None) -> Found:
    """Shards behind a URL with wildcards, or with numbers in braces as WebDataset writes them: {000000..001281}."""
    listed = sorted(file for pattern in _braces(source) for file in list_files(pattern))
    strange = next((url for url, _ in listed if not url.endswith(".tar")), None)
    if strange or not listed:
        what = f"{strange} is no .tar shard" if strange else f"'{source}' matches no file"
        raise UserError(f"{what}. Give a pattern that matches shards alone, quoted: 's3://bucket/set/train-*.tar'")
    base = os.path.commonprefix([url for url, _ in listed]).rpartition("/")[0]  # noqa: RUF071  (it is, at the slash)
    files = [File(url.removeprefix(f"{base}/"), size) for url, size in listed]
    return Found(SHARDS, Path(), _by_set(files, base, split), url=base)


def _by_set(shards: list[File], base: str, split: str | None) -> dict[str, list[File]]:
    """Shards by the set that their names tell."""
    files: dict[str, list[File]] = {}
    for file in shards:
        words = re.findall("[a-z]+", file.name.lower())
        told = next((SPLITS[word] for word in words if word in SPLITS), "")
        files.setdefault(told, []).append(file)
    if "" in files and len(files) > 1:
        raise UserError(
            f"{base}/{files[''][0].name}: its name does not say which set it is in, while others' do. "
            f"Put train, val or test into each name, or give a pattern: '{base}/*train*.tar'"
        )
    if "" in files:
        files = {split or "train": files[""]}
    return {name: files[name] for name in ("train", "validation", "test") if name in files}
