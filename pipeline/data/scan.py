"""Reading a WebDataset tar to know what is in it: the rows of the index.

In: one .tar of samples (`key.jpg` or `key.npy`, `key.cls`, perhaps others). Out: its `Shard` entry and its columns.
Only headers are decoded, of the tar and of each image; every byte is read for checksums.
"""

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.data.index import COLUMNS, OPTIONAL, Shard, digest, file_sha256
from pipeline.data.pillow import Undecodable, opened
from pipeline.errors import UserError

MAX_LABEL = 10_000_000  # without --classes, each label up to the largest becomes a class
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
RAW_EXTENSION = "npy"  # uint8 pixels [height, width, 3], which WebDataset's decoder reads too

# What is told of a problem: the shard's path, the key ("" for the tar itself), one word for its kind, the message.
Problem = Callable[[Path, str, str, str], None]
Components = dict[str, tuple[int, int]]  # extension -> (offset, size) in the tar
Sample = Callable[[str, Components], None]  # is told of every sample's key and files, those with problems too


def refuse(path: Path, key: str, kind: str, message: str) -> None:
    """The first problem ends the scan."""
    raise UserError(f"{path}: {message}")


def scan_shard(
    path: Path, name: str | None = None, problem: Problem = refuse, sample: Sample = lambda key, components: None
) -> tuple[Shard, dict[str, list]]:
    """Read one tar's members: its `Shard` entry, and a list for each column but `shard`.

    `problem` is told of a truncated tar, a sample without image or label, a label that is no number, a key that comes
    twice, an image whose header cannot be read, raw pixels among encoded images. By default it raises UserError, naming
    shard and key; if it returns, the sample is left out.
    """
    columns: dict[str, list] = {column: [] for column in COLUMNS | OPTIONAL if column != "shard"}
    forms: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as raw:
            for key, components in _samples(tar, path, problem):
                sample(key, components)
                row = _row(path, key, components, raw, forms, problem)
                for column, value in row.items():
                    columns[column].append(value)
            if os.pread(raw.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset:,}")  # where tarfile itself ends in silence
    except (tarfile.TarError, EOFError) as error:
        problem(path, "", "truncated", f"no readable tar: {error}. Fetch or make this shard again")
    form = "raw" if forms == {"raw"} else "encoded"
    shard = Shard(name or path.name, path.stat().st_size, file_sha256(path), len(columns["key"]), form)
    return shard, columns


_DECIMAL = re.compile(rb"\s*(-?[0-9]+)\s*", re.ASCII)  # int() takes 1_0 and digits of other scripts too

# WebDataset's own rule: the key is everything up to the first dot of the file name, folders included.
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def _samples(tar: tarfile.TarFile, path: Path, problem: Problem) -> Iterator[tuple[str, Components]]:
    seen: set[str] = set()
    key: str | None = None
    components: Components = {}
    for member in tar:
        if not member.name.isprintable():
            problem(path, "", "name", f"the name {member.name!r} is no UTF-8, or not printable. Make this shard again")
            continue
        match = _KEY_AND_EXTENSION.match(member.name)
        if not member.isfile() or not match:
            continue
        if member.issparse():  # its bytes are not where a reader of offsets looks for them
            problem(path, match[1], "sparse", f"'{member.name}' is stored with holes. Make this shard without tar -S")
            continue
        if match[1] != key:
            if components:
                yield str(key), components
            key, components = str(match[1]), {}
            if match[1] in seen:
                problem(
                    path,
                    match[1],
                    "duplicate",
                    f"the key '{key}' comes twice. Keys must be unique, a key's files together",
                )
            seen.add(match[1])
        extension = match[2].lower()
        if extension in components:
            problem(path, match[1], "duplicate", f"'{member.name}' comes twice. Make this shard again")
            continue
        components[extension] = (member.offset_data, member.size)
    if components:
        yield str(key), components


def _row(path: Path, key: str, components: Components, raw, forms: set[str], problem: Problem) -> dict[str, object]:
    """The sample's row of the index; empty if it has a problem."""
    extension = next((name for name in (*IMAGE_EXTENSIONS, RAW_EXTENSION) if name in components), None)
    if extension is None:
        known = ", ".join((*IMAGE_EXTENSIONS, RAW_EXTENSION))
        problem(path, key, "missing", f"sample '{key}' has no image ({known}), only {sorted(components)}")
        return {}
    if "cls" not in components:
        there = f"'{key}.cls' is missing. Only {sorted(components)} are there"
        problem(path, key, "missing", f"sample '{key}' has no label: {there}")
        return {}
    text = os.pread(raw.fileno(), components["cls"][1], components["cls"][0])
    number = _DECIMAL.fullmatch(text)
    label = int(number[1]) if number else -1
    if number is None:
        problem(path, key, "label", f"'{key}.cls' holds {text[:40]!r}, not a decimal class number")
        return {}
    if label > MAX_LABEL:
        problem(path, key, "label", f"'{key}.cls' holds {label}, more than any class list has. Mend this shard")
        return {}
    offset, size = components[extension]
    form = "raw" if extension == RAW_EXTENSION else "encoded"
    if form not in forms and forms:
        problem(path, key, "mixed", f"sample '{key}' is {form}, those before are not. Make shards of one form")
        return {}
    try:
        if form == "raw":
            header, width, height = raw_size(os.pread(raw.fileno(), min(size, 256), offset), size)
            offset, size = offset + header, size - header
            content = os.pread(raw.fileno(), size, offset)
        else:
            content = os.pread(raw.fileno(), size, offset)
            width, height = image_size(content)
    except ValueError as error:
        leave = "Leave it out and make this shard again"
        problem(path, key, "undecodable", f"sample '{key}': its image cannot be read ({error}). {leave}")
        return {}
    forms.add(form)
    row = {"offset": offset, "size": size, "label": label, "height": height, "width": width, "key": key.encode()}
    return row | {"digest": digest(content)}


def image_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) in pixels, from the header alone. Raises ValueError with the reason."""
    try:
        with opened(encoded) as image:
            return image.size
    except Undecodable as reason:
        raise ValueError(str(reason)) from None


def raw_size(start: bytes, size: int) -> tuple[int, int, int]:
    """(bytes before the pixels, width, height) of a .npy member of `size` bytes that begins with `start`.

    Raises ValueError unless it holds uint8 pixels [height, width, 3] in rows.
    """
    from numpy.lib import format as npy

    stream = io.BytesIO(start)
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"a .npy of version {version}")
    try:
        shape, by_columns, dtype = npy.read_array_header_1_0(stream)
    except Exception as error:  # the header is Python, and damaged Python can raise anything
        raise ValueError(f"its header cannot be read: {error}") from None
    if by_columns:
        raise ValueError("pixels by columns (Fortran order), not by rows")
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"{dtype} {list(shape)}, not uint8 [height, width, 3]")
    height, width, _ = shape
    if min(height, width) < 1 or stream.tell() + height * width * 3 != size:
        raise ValueError(f"{size} bytes do not hold {height} x {width} pixels")
    return stream.tell(), width, height
