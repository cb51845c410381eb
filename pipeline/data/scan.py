"""Reading a WebDataset tar to know what is in it: the rows of the index.

In: one .tar of samples (`key.jpg`, `key.cls`, perhaps others). Out: its `Shard` entry and its columns. Only headers are
read, of the tar and of each image, and once the whole file for its checksum.
"""

import io
import os
import re
import tarfile
from pathlib import Path

from pipeline.data.index import COLUMNS, Shard, file_sha256
from pipeline.errors import UserError

MAX_LABEL = 10_000_000  # without --classes, each label up to the largest becomes a class
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def scan_shard(path: Path, name: str | None = None) -> tuple[Shard, dict[str, list]]:
    """Read one tar's members: its `Shard` entry, and a list for each column but `shard`.

    Raises UserError, naming shard and key, for a truncated tar, a sample without image or label, a label that is no
    number, a key that comes twice, an image whose header cannot be read.
    """
    columns: dict[str, list] = {column: [] for column in COLUMNS if column != "shard"}
    try:
        with tarfile.open(path, "r:") as tar, open(path, "rb") as raw:
            for key, components in _samples(tar, path):
                _append(columns, path, key, components, raw)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is no readable tar: {error}. Fetch or make this shard again") from None
    shard = Shard(name or path.name, path.stat().st_size, file_sha256(path), len(columns["key"]))
    return shard, columns


# WebDataset's own rule: the key is everything up to the first dot of the file name, folders included.
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def _samples(tar: tarfile.TarFile, path: Path):
    seen: set[str] = set()
    key: str | None = None
    components: dict[str, tuple[int, int]] = {}
    for member in tar:
        if not member.name.isprintable():
            raise UserError(f"{path}: the name {member.name!r} is no UTF-8, or not printable. Make this shard again")
        match = _KEY_AND_EXTENSION.match(member.name)
        if not member.isfile() or not match:
            continue
        if match[1] != key:
            if key is not None:
                yield key, components
            key, components = match[1], {}
            if key in seen:
                raise UserError(f"{path}: the key '{key}' comes twice. Keys must be unique, and a key's files together")
            seen.add(key)
        extension = match[2].lower()
        if extension in components:
            raise UserError(f"{path}: '{member.name}' comes twice. Make this shard again")
        components[extension] = (member.offset_data, member.size)
    if key is not None:
        yield key, components


def _append(columns: dict[str, list], path: Path, key: str, components: dict[str, tuple[int, int]], raw) -> None:
    image = next((components[extension] for extension in IMAGE_EXTENSIONS if extension in components), None)
    if image is None:
        raise UserError(
            f"{path}: sample '{key}' has no image ({', '.join(IMAGE_EXTENSIONS)}), only {sorted(components)}"
        )
    if "cls" not in components:
        raise UserError(
            f"{path}: sample '{key}' has no label: '{key}.cls' is missing. Only {sorted(components)} are there"
        )
    text = os.pread(raw.fileno(), components["cls"][1], components["cls"][0])
    try:
        label = int(text)
    except ValueError:
        raise UserError(f"{path}: '{key}.cls' holds {text[:40]!r}, not a decimal class number") from None
    if label > MAX_LABEL:
        raise UserError(f"{path}: '{key}.cls' holds {label}, more than any class list has. Mend this shard")
    offset, size = image
    width, height = image_size(os.pread(raw.fileno(), size, offset), f"{path}: sample '{key}'")
    row = {"offset": offset, "size": size, "label": label, "height": height, "width": width, "key": key.encode()}
    for name, value in row.items():
        columns[name].append(value)


def image_size(encoded: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels, from the header alone. Raises UserError starting with `where`."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(encoded)).size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{where}: its image cannot be read ({error}). Leave it out and make this shard again"
        ) from None
