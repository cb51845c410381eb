"""Reading a WebDataset tar to know what is in it: the rows of the index.

In: one .tar of samples (`key.jpg` or `key.npy`, `key.cls`, perhaps others). Out: its `Shard` entry and its columns.
Only headers are decoded, of the tar and of each image; every byte is read for checksums.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.data.decoding.pillow import Undecodable, opened
from pipeline.data.index import COLUMNS, OPTIONAL, digest
from pipeline.data.layout import RAW_EXTENSION, WEBDATASET, Layout, describe
from pipeline.data.manifest import Shard
from pipeline.errors import UserError
from pipeline.files import file_sha256

MAX_LABEL = 10_000_000  # without --classes, each label up to the largest becomes a class
PEEK_BYTES = 4096  # of each file, to describe a sample that is not understood

# What is told of a problem: the shard's path, the key ("" for the tar itself), one word for its kind, the message.
Problem = Callable[[Path, str, str, str], None]
Components = dict[str, tuple[int, int]]  # extension -> (offset, size) in the tar
Sample = Callable[[str, Components], None]  # is told of every sample's key and files, those with problems too


def refuse_sample(path: Path, key: str, kind: str, message: str) -> None:
    """The first problem ends the scan."""
    raise UserError(f"{path}: {message}")


def scan_shard(
    path: Path,
    name: str | None = None,
    problem: Problem = refuse_sample,
    sample: Sample = lambda key, components: None,
    layout: Layout = WEBDATASET,
    names: dict[str, int] | None = None,
) -> tuple[Shard, dict[str, list]]:
    """Read one tar's members: its `Shard` entry, and a list for each column but `shard`.

    `layout` says which members are image and label; labels that are names become the numbers of `names`, or without
    them stay names. `problem` is told of a truncated tar, a sample without image or label, a label that is no number, a
    key that comes twice, an image whose header cannot be read, raw pixels among encoded images. By default it raises
    UserError, naming shard and key; if it returns, the sample is left out.
    """
    columns: dict[str, list] = {column: [] for column in COLUMNS | OPTIONAL if column != "shard"}
    forms: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as raw:
            for key, components in _samples(tar, path, problem, layout):
                sample(key, components)
                row = _row(path, key, components, raw, forms, problem, layout, names)
                for column, value in row.items():
                    columns[column].append(value)
            if os.pread(raw.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset:,}")  # where tarfile itself ends in silence
    except (tarfile.TarError, EOFError) as error:
        problem(path, "", "truncated", f"no readable tar: {error}. Fetch or make this shard again")
    form = "raw" if forms == {"raw"} else "encoded"
    shard = Shard(name or path.name, path.stat().st_size, file_sha256(path), len(columns["key"]), form)
    return shard, columns


def _samples(tar: tarfile.TarFile, path: Path, problem: Problem, layout: Layout) -> Iterator[tuple[str, Components]]:
    seen: set[str] = set()
    key: str | None = None
    components: Components = {}
    is_begun = False  # whether a file of this key may make it a sample
    for member in tar:
        if not member.name.isprintable():
            problem(path, "", "name", f"the name {member.name!r} is no UTF-8, or not printable. Make this shard again")
            continue
        parts = layout.split(member.name, key)
        if parts and (member.islnk() or member.issym()) and layout.is_sample([parts[1]]):
            what = f"'{member.name}' is a link to '{member.linkname}'. Make this shard with tar --hard-dereference -h"
            problem(path, parts[0], "sparse", what)
            continue
        if not member.isfile() or not parts:
            continue
        its_key, extension = parts
        if member.issparse():  # its bytes are not where a reader of offsets looks for them
            problem(path, its_key, "sparse", f"'{member.name}' is stored with holes. Make this shard without tar -S")
            continue
        if its_key != key:
            if components and layout.is_sample(components):
                yield str(key), components
            key, components, is_begun = its_key, {}, False
        if not is_begun and layout.is_sample([extension]):
            is_begun = True
            if its_key in seen:
                twice = f"the key '{key}' comes twice. Keys must be unique, a key's files together"
                problem(path, its_key, "duplicate", twice)
            seen.add(its_key)
        if extension in components:
            problem(path, its_key, "duplicate", f"'{member.name}' comes twice. Make this shard again")
            continue
        components[extension] = (member.offset_data, member.size)
    if components and layout.is_sample(components):
        yield str(key), components


def _row(
    path: Path,
    key: str,
    components: Components,
    raw: io.BufferedReader,
    forms: set[str],
    problem: Problem,
    layout: Layout,
    names: dict[str, int] | None,
) -> dict[str, object]:
    """The sample's row of the index; empty if it has a problem."""
    extension = next((name for name in layout.image if name in components), None)
    there = components.get(layout.label_extension)
    if extension is None or there is None:
        lacks = f"no image ({', '.join(layout.image)})" if extension is None else f"no label ({layout.label})"
        files = {name: os.pread(raw.fileno(), min(size, PEEK_BYTES), at) for name, (at, size) in components.items()}
        problem(path, key, "missing", f"sample '{key}' has {lacks}: {describe(files)}")
        return {}
    try:
        label = layout.read_label(os.pread(raw.fileno(), there[1], there[0]), names)
    except ValueError as reason:  # a UnicodeDecodeError is one too
        problem(path, key, "label", f"'{key}.{layout.label_extension}' {reason}")
        return {}
    if isinstance(label, int) and label > MAX_LABEL:
        problem(path, key, "label", f"'{key}.{layout.label_extension}' holds {label}, more than any class list has")
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
    place = {"offset": offset, "size": size, "height": height, "width": width}
    return {**place, "label": label, "key": key.encode(), "digest": digest(content)}


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
