"""What a SOURCE turns out to be: its kind, and its files by set. `sources.py` finds it, `sets.py` gives classes."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
LAYOUT = "SOURCE/cat/1.jpg, or SOURCE/train/cat/1.jpg with SOURCE/val beside it"


class File(NamedTuple):
    """`name` relative to the source, with slashes; `size` in bytes, -1 for a link that leads nowhere. In a tar: its
    `offset` there, and the tar's own name."""

    name: str
    size: int
    offset: int = 0
    tar: str = ""


@dataclass(frozen=True)
class Origin:
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
