"""A local copy of the index of a remote set: small files, fetched once, looked at again at every start.

In: the URL of a packed set. Out: a folder of the cache with its manifest, columns and quarantine, for `index.load`.
"""

import fcntl
import hashlib
import json
from pathlib import Path

from pipeline.data.index import COLUMNS, MANIFEST, QUARANTINE, file_sha256
from pipeline.data.remote import download, read_bytes
from pipeline.errors import UserError


def mirror(url: str, cache: Path | None) -> Path:
    """Copy manifest, columns and quarantine from a URL into a folder of `cache`; what is there already stays.

    Raises UserError for a URL without a manifest, or columns that are not the manifest's.
    """
    url = url.rstrip("/")
    if cache is None:
        raise UserError(f"{url} is a URL, and there is no folder to keep its index in. Set data.cache")
    folder = cache / "index" / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_bytes(f"{url}/{MANIFEST}")
    if manifest is None:
        raise UserError(
            f"{url} has no {MANIFEST}. Copy a packed set there as a whole, or index its shards: python -m launch.pack"
        )
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process of the machine copies, the others find it done
        if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != manifest:
            _fetch_columns(url, folder, manifest)
        if not (folder / QUARANTINE).exists() and (quarantine := _if_there(f"{url}/{QUARANTINE}")):
            (folder / QUARANTINE).write_bytes(quarantine)
    return folder


def _if_there(url: str) -> bytes | None:
    """An optional file. Some servers say "forbidden" of what does not exist."""
    try:
        return read_bytes(url)
    except UserError:
        return None


def _fetch_columns(url: str, folder: Path, manifest: bytes) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / QUARANTINE).unlink(missing_ok=True)
    (folder / "index").mkdir(exist_ok=True)
    try:
        sums = json.loads(manifest)["columns"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}/{MANIFEST} is damaged ({error}). Make it again with: python -m launch.pack") from None
    for name in COLUMNS:
        path = folder / "index" / f"{name}.npy"
        download(f"{url}/index/{name}.npy", path)
        if file_sha256(path) != sums.get(name):
            raise UserError(
                f"{url}/index/{name}.npy is not the one that {MANIFEST} was written with. Copy the set there again"
            )
    (folder / MANIFEST).write_bytes(manifest)
