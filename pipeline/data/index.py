"""The index of a set of WebDataset shards: where every sample lies, its label and its size in pixels.

In: tar shards. Out: a folder with `manifest.json` (shard names, sizes, checksums, class names) and `index/*.npy`, one
memory-mapped column each, so that all processes of a machine share one copy and loading 1.28 M rows takes milliseconds.
A sample's id is its row. Shards stay plain WebDataset tars; nothing in them is changed. The folder, or the shards
alone, may lie behind a URL: then the index is copied into the cache folder, and shards come when they are needed.

    index = load("data/photos/train")
    index.label[7], index.height[7], index.location(index.shard[7])
"""

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np

from pipeline import hints
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.data.storage.remote import is_remote
from pipeline.errors import UserError
from pipeline.files import file_sha256, whole

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.tsv"
VERSION = 2
_SHA256 = re.compile("[0-9a-f]{64}")
COLUMNS = {
    "shard": np.int32,  # row of `shards`
    "offset": np.int64,  # of the image's first byte in the shard, or of its first pixel
    "size": np.int64,  # in bytes
    "label": np.int32,
    "height": np.int32,  # as stored, before any EXIF rotation
    "width": np.int32,
    "key": np.bytes_,  # WebDataset's key, UTF-8
}
OPTIONAL = {  # what sets of before lack
    "digest": np.uint64,  # of the image's bytes, or of its pixels: equal ones are the same image. 8 bytes an image
}


@dataclass(frozen=True)
class Shard:
    """One tar: `name` relative to the set's `shards_root`, `size` in bytes, `sha256` of the whole file; `form` is
    "encoded" (JPEG, PNG, WebP) or "raw" (uint8 pixels)."""

    name: str
    size: int
    sha256: str
    num_samples: int
    form: str = "encoded"

    def __post_init__(self) -> None:
        """A manifest may come from elsewhere, and paths are made of what it says. ValueError for what no shard is."""
        parts = self.name.split("/") if isinstance(self.name, str) else []
        if not parts or ".." in parts or "" in parts or not self.name.isprintable():
            raise ValueError(f"{self.name!r} is no name of a shard below the set's folder")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.name}: {self.sha256!r} is no SHA-256")
        if any(type(number) is not int or number < 0 for number in (self.size, self.num_samples)):
            raise ValueError(f"{self.name}: size {self.size!r} and num_samples {self.num_samples!r} must be numbers")
        if self.form not in ("encoded", "raw"):
            raise ValueError(f"{self.name}: form {self.form!r} must be encoded or raw")


@dataclass(frozen=True)
class Index:
    """The loaded index. Columns are read-only arrays of `num_samples` rows; `classes[label]` is a class's name."""

    folder: Path
    shards_root: str  # a folder or a URL
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    rgb_mean: tuple[float, ...] | None  # of all pixels, in 0..1
    rgb_covariance: tuple[tuple[float, ...], ...] | None
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    height: np.ndarray
    width: np.ndarray
    key: np.ndarray
    digest: np.ndarray | None = None
    layout: Layout = WEBDATASET  # of the tars

    @property
    def num_samples(self) -> int:
        return len(self.label)

    def __len__(self) -> int:
        return self.num_samples

    @property
    def is_raw(self) -> bool:
        """Whether samples are uint8 pixels [height, width, 3], which need no decoder."""
        return any(shard.form == "raw" for shard in self.shards)

    @property
    def is_remote(self) -> bool:
        return is_remote(self.shards_root)

    def location(self, shard: int) -> str:
        """Path or URL of a shard."""
        return f"{self.shards_root}/{self.shards[shard].name}"

    def key_of(self, sample: int) -> str:
        return bytes(self.key[sample]).decode()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any byte of any shard, with their order, with the class list, and with what is
        read as image and label of the shards of others."""
        whole = [[s.sha256 for s in self.shards], self.classes]
        facts = json.dumps(whole if self.layout == WEBDATASET else [*whole, self.layout]).encode()
        return hashlib.sha256(facts).hexdigest()[:16]


def load(where: str | Path, verify: bool = True, cache: Path | None = None) -> Index:
    """Open the index in a folder or at a URL and, with `verify`, check that its shards are the ones that were indexed.

    A local shard counts as unchanged if its size is the same and it is not newer than the manifest (make's rule). A
    newer one is read once and compared with its checksum. Remote ones are compared when they are fetched.

    Raises UserError, naming the file: no index, a damaged index, a missing or changed shard, a label outside the class
    list, an empty set, a URL without a `cache` folder to copy the index to.
    """
    if is_remote(str(where)):
        from pipeline.data.storage.mirror import mirror

        folder = mirror(str(where), cache)
    else:
        folder = Path(where)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["version"] != VERSION:
            raise UserError(
                f"{path} has version {manifest['version']}, this program reads {VERSION}. Make it again with "
                f"launch.pack"
            )
        shards = tuple(Shard(**shard) for shard in manifest["shards"])
        classes = tuple(manifest["classes"])
        num_samples, root = manifest["num_samples"], manifest["shards_root"]
        given = manifest.get("layout")
        layout = Layout(tuple(given["image"]), given["label"], tuple(given["suffixes"])) if given else WEBDATASET
        sums, rgb = manifest.get("columns", {}), manifest.get("rgb") or {}
        if type(num_samples) is not int or not isinstance(root, str) or not isinstance(sums, dict):
            raise ValueError(f"num_samples={num_samples!r:.40}, shards_root={root!r:.40}, columns={sums!r:.40}")
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be names")
        rgb_mean = tuple(rgb["mean"]) if rgb else None
        rgb_covariance = tuple(map(tuple, rgb["covariance"])) if rgb else None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_no_index(folder)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Make it again with launch.pack") from None
    if not num_samples:
        raise UserError(f"{folder} holds no samples: every shard is empty. Pack a folder that has images in it")

    there = COLUMNS | {name: dtype for name, dtype in OPTIONAL.items() if name in sums}
    columns = {name: _load_column(_column(folder, name), dtype, num_samples) for name, dtype in there.items()}
    index = Index(
        folder=folder,
        shards_root=_shards_root(str(where).rstrip("/"), root),
        shards=shards,
        classes=classes,
        rgb_mean=rgb_mean,
        rgb_covariance=rgb_covariance,
        layout=layout,
        **columns,
    )
    low, high = int(index.label.min()), int(index.label.max())
    if low < 0 or high >= len(classes):
        sample = int(np.flatnonzero((index.label < 0) | (index.label >= len(classes)))[0])
        raise UserError(
            f"{index.location(index.shard[sample])}: sample '{index.key_of(sample)}' has label "
            f"{index.label[sample]}, but the class list in {path} has {len(classes)} names"
        )
    _check_places(index)
    for name in there if verify else ():
        if name in sums and file_sha256(_column(folder, name)) != sums[name]:
            raise UserError(f"{_column(folder, name)} is not what {path} was written with. Make the index again")
    if verify and not index.is_remote:
        _check_shards(index, path)
    return index


def _check_places(index: Index) -> None:
    """Raises UserError for a row that points outside its shard."""
    num_shards, sizes = len(index.shards), np.array([shard.size for shard in index.shards], np.int64)
    inside = (index.shard >= 0) & (index.shard < num_shards)
    room = sizes[np.where(inside, index.shard, 0)] - index.offset  # the sum might not fit into 64 bits
    inside &= (index.offset >= 0) & (index.size > 0) & (index.size <= room)
    if not (inside & (index.height > 0) & (index.width > 0)).all():
        row = int((inside & (index.height > 0) & (index.width > 0)).argmin())
        raise UserError(
            f"{index.folder / 'index'}: row {row} ('{index.key_of(row)}') points outside its shard, or has no size. "
            f"The index is damaged: make it again with launch.pack"
        )


def _shards_root(home: str, root: str) -> str:
    """Where the shards are: `root` is a URL, a whole path, or relative to `home`, the index's own place."""
    if is_remote(root) or root.startswith("/"):
        return root
    return home if root == "." else f"{home}/{root}"


def _no_index(folder: Path) -> str:
    if not folder.exists():
        return (
            f"{folder} does not exist. Give the folder of a packed set (it holds {MANIFEST}), or pack one: "
            + hints.command("launch.pack", "SOURCE", "OUT")
        )
    if not folder.is_dir():
        return f"{folder} is a file. Give the folder of a packed set (it holds {MANIFEST}); launch.pack indexes a .tar"
    packed = sorted(child.name for child in folder.iterdir() if (child / MANIFEST).exists())
    if packed:
        named = ", ".join(shlex.quote(str(folder / name)) for name in packed)
        return f"{folder} holds several sets; name one of them: {named}"
    return (
        f"{folder} has no {MANIFEST}, so it is no packed set, or its packing was interrupted. "
        f"Pack photos into a new folder, or index existing shards: {hints.command('launch.pack', 'SOURCE', 'OUT')}"
    )


def _column(folder: Path, name: str) -> Path:
    return folder / "index" / f"{name}.npy"


def _load_column(path: Path, dtype: type, num_samples: int) -> np.ndarray:
    try:
        column = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Make the index again with launch.pack") from None
    if column.dtype.kind != np.dtype(dtype).kind:
        raise UserError(f"{path} holds {column.dtype}, not {np.dtype(dtype).name}. Make the index again")
    if column.shape != (num_samples,):
        rows = column.shape[0] if column.shape else 0
        raise UserError(f"{path} has {rows} rows, the manifest says {num_samples}. Make the index again")
    return column


def _check_shards(index: Index, manifest: Path) -> None:
    indexed_ns = manifest.stat().st_mtime_ns
    for number, shard in enumerate(index.shards):
        path = Path(index.location(number))
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {manifest} lists it. Bring it back, or pack anew") from None
        if stat.st_size != shard.size:
            raise UserError(
                f"{path} changed since it was indexed: it has {stat.st_size} bytes, {manifest} says {shard.size}. "
                f"Bring the old file back, or remove {index.folder.parent} and make it anew with launch.pack"
            )
        if stat.st_mtime_ns > indexed_ns and file_sha256(path) != shard.sha256:
            raise UserError(
                f"{path} changed since it was indexed: its SHA-256 is not the one in {manifest}. "
                f"Bring the old file back, or remove {index.folder.parent} and make it anew with launch.pack"
            )


def digest(content: bytes) -> int:
    """The `digest` of an image's bytes. Among 1.28 M images two are equal by chance once in 20 million sets."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def write(
    folder: Path,
    shards: list[tuple[Shard, dict[str, list]]],
    classes: list[str],
    shards_root: str = ".",
    rgb: dict | None = None,
    layout: Layout = WEBDATASET,
) -> None:
    """Write the index of `shards` (in order, as scan.scan_shard returns them) into `folder`; the manifest comes last.

    `rgb` is {"mean": 3 floats, "covariance": 3 x 3 floats} over pixels in 0..1, or None. The same input gives the same
    bytes. Raises UserError for a key that two shards share, and for raw beside encoded shards.
    """
    (folder / "index").mkdir(parents=True, exist_ok=True)
    counts = [shard.num_samples for shard, _ in shards]
    dtypes = COLUMNS | OPTIONAL
    for name, dtype in dtypes.items():
        if name == "shard":
            column = np.repeat(np.arange(len(shards), dtype=dtype), counts)
        else:
            column = np.array([value for _, columns in shards for value in columns[name]], dtype=dtype)
        if name == "key" and len(np.unique(column)) != len(column):
            _raise_shared_key(shards)
        np.save(folder / "index" / f"{name}.npy", column)
    forms = {shard.form for shard in map(itemgetter(0), shards) if shard.num_samples}
    if len(forms) > 1:
        raw = next(shard.name for shard, _ in shards if shard.form == "raw")
        raise UserError(f"{raw} holds raw pixels, other shards encoded images. Make sets of one form")
    manifest = {
        "version": VERSION,
        "num_samples": sum(counts),
        "shards_root": shards_root,
        "layout": layout._asdict() if layout != WEBDATASET else None,
        "rgb": rgb,
        "columns": {name: file_sha256(folder / "index" / f"{name}.npy") for name in dtypes},
        "shards": [asdict(shard) for shard, _ in shards],
        "classes": list(classes),
    }
    with whole(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def _raise_shared_key(shards: list[tuple[Shard, dict[str, list]]]) -> None:
    home: dict[bytes, str] = {}
    for shard, columns in shards:
        for key in columns["key"]:
            if key in home:
                raise UserError(f"the key '{key.decode()}' is in {home[key]} and in {shard.name}. Keys must be unique")
            home[key] = shard.name
