"""Tars that exist, here or at a URL: shards to index where they are, compressed ones, tars of class folders.

In: paths, a pattern or a URL. Out: `Origin`.
"""

import glob
import os
import re
import shlex
from pathlib import Path

from pipeline.data.storage.remote import list_files
from pipeline.errors import UserError
from pipeline.packing import tars
from pipeline.packing.listing import CLASS_TARS, LAYOUT, SHARDS, SPLITS, File, Origin

COMPRESSED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)


def shards(paths: list[Path], split: str | None, root: Path | None = None) -> Origin:
    """Existing shards on this machine."""
    for path in sorted(paths):
        if not path.name.endswith(".tar") and not COMPRESSED.search(path.name):
            raise UserError(f"{path} is no .tar shard. Give a pattern that matches shards alone: 'data/*.tar'")
        if not path.exists():
            raise UserError(
                f"{path} is a link to {os.path.realpath(path)}, which is not there. Fetch it, or remove the link"
            )
    if not paths:
        return Origin(SHARDS, Path(), {})
    base = Path(os.path.realpath(root or os.path.commonpath([path.parent.absolute() for path in paths])))
    names = sorted(os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), base) for path in paths)
    by_set = _by_set([File(name, (base / name).stat().st_size) for name in names], str(base), split)
    first = base / names[0]
    compressed = [name for name in names if tars.opener(base / name)]
    if not tars.holds_class_folders(first):
        return Origin(SHARDS, base, by_set, compressed=bool(compressed))
    if compressed:
        raise UserError(
            f"{first} holds class folders and is compressed. Unpack it and pack the folder: mkdir photos && "
            f"tar -xf {shlex.quote(str(first))} -C photos"
        )
    return Origin(CLASS_TARS, base, *_in_class_tars(base, by_set))


def matching(source: str) -> list[Path]:
    """The files of a pattern with wildcards or braces. Raises UserError for one of the braces that is not there."""
    paths: list[Path] = []
    for pattern in _braces(source):
        files = [Path(name) for name in glob.glob(pattern, recursive=True)]
        if not files and pattern != source:
            raise UserError(f"{pattern} does not exist, which '{source}' names. Fetch it, or change the pattern")
        paths += files
    return paths


def remote_shards(source: str, split: str | None) -> Origin:
    """Shards behind a URL with wildcards, or with numbers in braces as WebDataset writes them: {000000..001281}."""
    listed = sorted(file for pattern in _braces(source) for file in list_files(pattern))
    strange = next((url for url, _ in listed if not url.endswith(".tar")), None)
    if strange or not listed:
        what = f"{strange} is no .tar shard" if strange else f"'{source}' matches no file"
        raise UserError(f"{what}. Give a pattern that matches shards alone, quoted: 's3://bucket/set/train-*.tar'")
    base = os.path.commonprefix([url for url, _ in listed]).rpartition("/")[0]  # noqa: RUF071  (it is, at the slash)
    files = [File(url.removeprefix(f"{base}/"), size) for url, size in listed]
    return Origin(SHARDS, Path(), _by_set(files, base, split), url=base)


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
        raise UserError(f"{base}: its tars hold no image in a folder of a class. {LAYOUT}")
    notes = (f"left aside, in no class folder: {', '.join(sorted(aside)[:5])}",) if aside else ()
    return {name: files[name] for name in ("train", "validation", "test") if name in files}, notes


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


def _braces(source: str) -> list[str]:
    """Numbers in braces as WebDataset writes them: {000000..001281}."""
    from braceexpand import braceexpand

    try:
        return list(braceexpand(source))
    except ValueError:
        raise UserError(f"'{source}' has a brace without its other one") from None
