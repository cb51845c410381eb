"""Tars that are no shards with an index yet: compressed ones, and those that hold class folders.

In: a tar. Out: what it holds, told from its first members; its images with their places, for those of class folders.
"""

import bz2
import gzip
import lzma
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.files import whole
from pipeline.packing.folders import IMAGE_NAME

PEEKED = 200  # files that tell what a tar holds
MOST_MEMBERS = 20_000  # that are looked at for them: a tar may begin with its folders
_OPENERS: dict[bytes, Callable[[Path, str], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class Image(NamedTuple):
    """`size` bytes at `offset` of the tar; `name` in it."""

    name: str
    offset: int
    size: int


def opener(path: Path) -> Callable[[Path, str], Any] | None:
    """What reads a compressed file, told from its first bytes; None if it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise UserError(f"{path} is compressed with zstd. Unpack it first: zstd -d {shlex.quote(str(path))}")
    return next((opens for magic, opens in _OPENERS.items() if start.startswith(magic)), None)


def unpack(compressed: Path, tar: Path) -> None:
    """Write what `compressed` holds (itself, if it is not) to `tar`, which appears when it is whole. Raises UserError
    for a damaged file."""
    reads = opener(compressed) or Path.open
    try:
        with whole(tar) as temporary, reads(compressed, "rb") as stream, open(temporary, "wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
    except (EOFError, OSError, lzma.LZMAError, zlib.error, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk, and the like; gzip and bz2 raise it without a number for bad data
        raise UserError(f"{compressed} is damaged: {error}. Fetch it again") from None


def holds_class_folders(path: Path) -> bool:
    """Whether images lie in folders and no file beside one may be its label. An unreadable tar holds none."""
    try:
        with tarfile.open(path, "r:*") as tar:
            files = (member.name for member in islice(tar, MOST_MEMBERS) if member.isfile())
            names = list(islice((name for name in files if not _hidden(name)), PEEKED))
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error):
        return False
    images = [name for name in names if IMAGE_NAME.search(name)]
    keys = {name.rpartition(".")[0] for name in images}
    labels = any(name.rpartition(".")[0] in keys for name in names if not IMAGE_NAME.search(name))
    return bool(images) and not labels and all(name.removeprefix("./").count("/") for name in images)


def images(path: Path) -> Iterator[Image]:
    """The files in the folders of an uncompressed tar, in its order. Raises UserError for a damaged one."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if (member.islnk() or member.issym()) and IMAGE_NAME.search(name) and not _hidden(name):
                    raise UserError(
                        f"{path}: '{name}' is a link to '{member.linkname}'. Make it with tar -h --hard-dereference, "
                        f"or unpack it and pack the folder"
                    )
                if member.isfile() and not member.issparse() and "/" in name and not _hidden(name):
                    yield Image(name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is no readable tar: {error}. Fetch it again") from None


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))
