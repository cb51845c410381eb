"""A local copy of the index of a remote set: small files, fetched once, looked at again at every start.

In: where a packed set is. Out: its index; of one behind a URL manifest, columns and quarantine lie in the cache then.
The set's own quarantine replaces what runs have added here.
"""

import hashlib
import json
from pathlib import Path

from pipeline import files, hints
from pipeline.data.index import BOXES, COLUMNS, MASKS, OPTIONAL, QUARANTINE, Index, load
from pipeline.data.manifest import MANIFEST
from pipeline.data.storage.remote import AT_START, KEEP, Forbidden, download, is_remote, read_bytes
from pipeline.errors import UserError
from pipeline.files import cannot_write, file_sha256
from pipeline.locks import lock


def open_set(where: str, cache: Path, verify: bool = True) -> Index:
    """The index of a packed set in a folder or behind a URL, of which a copy is kept in `cache`. Raises UserError as
    `index.load` and `mirror` do."""
    if not is_remote(where):
        return load(where, verify)
    return load(mirror(where, cache), verify, home=where.rstrip("/"))


def mirror(url: str, cache: Path) -> Path:
    """Copy manifest, columns and quarantine from a URL into a folder of `cache`; what is there already stays.

    Raises UserError for a URL without a manifest, or columns that are not the manifest's.
    """
    url = url.rstrip("/")
    if url.endswith((".tar", f"/{MANIFEST}")):
        raise UserError(f"{url} is a file. Give the URL of a packed set's folder; launch.pack indexes shards: {url}")
    manifest = read_bytes(f"{url}/{MANIFEST}", AT_START)
    if manifest is None:
        raise UserError(
            f"{url} has no {MANIFEST}. Copy a packed set there as a whole, or index its shards: "
            + hints.command("launch.pack", "SHARDS", "OUT")
        )
    # A manifest has a folder of its own: jobs that have the columns of another one mapped keep them.
    folder = cache / "index" / hashlib.sha256(url.encode() + b"\0" + manifest).hexdigest()[:16]
    try:
        (folder / "index").mkdir(parents=True, exist_ok=True)
        held = open(folder / ".lock", "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise cannot_write(folder, error, 0, KEEP) from None
    with held:
        lock(held)  # one process of the machine copies, the others find it done
        if not (folder / MANIFEST).exists():
            _fetch_columns(url, folder, manifest)
        if quarantine := _if_there(f"{url}/{QUARANTINE}"):
            files.replace(folder / QUARANTINE, quarantine, KEEP)
    return folder


def _if_there(url: str) -> bytes | None:
    """An optional file. A server that fails is no answer: without its quarantine a run would train on other rows."""
    try:
        return read_bytes(url, AT_START)
    except Forbidden:
        return None


def _fetch_columns(url: str, folder: Path, manifest: bytes) -> None:
    try:
        sums = json.loads(manifest)["columns"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}/{MANIFEST} is damaged ({error}). Make it again with launch.pack") from None
    for name in [*COLUMNS, *(name for name in OPTIONAL | BOXES | MASKS if name in sums)]:
        path = folder / "index" / f"{name}.npy"
        download(f"{url}/index/{name}.npy", path, AT_START)
        if file_sha256(path) != sums.get(name):
            raise UserError(
                f"{url}/index/{name}.npy is not the one that {MANIFEST} was written with. Copy the set there again"
            )
    files.replace(folder / MANIFEST, manifest, KEEP)
