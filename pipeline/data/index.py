"""The index of a set of WebDataset shards: where every sample lies, its targets and its size in pixels.

In: a folder with `manifest.json` (shard names, sizes, checksums, class names) and `index/*.npy`, one memory-mapped
column each, so that all processes of a machine share one copy and loading 1.28 M rows takes milliseconds. A sample's id
is its row. Shards stay plain WebDataset tars; nothing in them is changed.

    index = load("data/photos/train")
    index.label[7], index.height[7], index.location(index.shard[7])
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.data import manifest as manifests
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.data.manifest import MANIFEST, Manifest, Shard
from pipeline.data.storage.remote import is_remote
from pipeline.errors import UserError
from pipeline.files import file_sha256

QUARANTINE = "quarantine.tsv"
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
BOXES = {  # of sets for detection: sample n has the rows box_start[n] .. box_start[n + 1] - 1 of the others
    "box_start": np.int64,
    "box": np.float32,  # left, top, right, bottom edge in source pixels, counted from 0
    "box_label": np.int32,
    "box_difficult": np.bool_,  # VOC's flag: neither found nor missed
}
MASKS = {  # of sets for segmentation: the mask's PNG, in the shard of its image
    "mask_offset": np.int64,
    "mask_size": np.int64,
}


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
    box_start: np.ndarray | None = None
    box: np.ndarray | None = None
    box_label: np.ndarray | None = None
    box_difficult: np.ndarray | None = None
    mask_offset: np.ndarray | None = None
    mask_size: np.ndarray | None = None
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
        text = json.dumps(whole if self.layout == WEBDATASET else [*whole, self.layout]).encode()
        return hashlib.sha256(text).hexdigest()[:16]


def load(where: str | Path, verify: bool = True, home: str | None = None) -> Index:
    """Open the index in a folder and, with `verify`, check that its shards are the ones that were indexed.

    A local shard counts as unchanged if its size is the same and it is not newer than the manifest (make's rule). A
    newer one is read once and compared with its checksum. Remote ones are compared when they are fetched. `home` is
    what shards are relative to, by default the folder; sets behind URLs are opened by `storage.mirror.open_set`.

    Raises UserError, naming the file: no index, a damaged index, a missing or changed shard, a label outside the class
    list, an empty set.
    """
    folder = Path(where)
    manifest = manifests.read(folder)
    sums = manifest.columns
    dtypes = COLUMNS | {name: dtype for name, dtype in (OPTIONAL | BOXES | MASKS).items() if name in sums}
    columns = {name: _load_column(column_file(folder, name), dtype) for name, dtype in dtypes.items()}
    _check_shapes(folder, manifest, columns)
    index = Index(
        folder=folder,
        shards_root=_shards_root(home or str(where).rstrip("/"), manifest.shards_root),
        shards=manifest.shards,
        classes=manifest.classes,
        rgb_mean=manifest.rgb_mean,
        rgb_covariance=manifest.rgb_covariance,
        layout=manifest.layout,
        **columns,
    )
    _check_labels(index)
    _check_places(index)
    for name in dtypes if verify else ():
        if name in sums and file_sha256(column_file(folder, name)) != sums[name]:
            raise UserError(
                f"{column_file(folder, name)} is not what {folder / MANIFEST} was written with. Make the index again"
            )
    if verify and not index.is_remote:
        _check_shards(index, folder / MANIFEST)
    return index


def column_file(folder: Path, name: str) -> Path:
    return folder / "index" / f"{name}.npy"


def digest(content: bytes) -> int:
    """The `digest` of an image's bytes. Among 1.28 M images two are equal by chance once in 20 million sets."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _shards_root(home: str, root: str) -> str:
    """Where the shards are: `root` is a URL, a whole path, or relative to `home`, the index's own place."""
    if is_remote(root) or root.startswith("/"):
        return root
    return home if root == "." else f"{home}/{root}"


def _load_column(path: Path, dtype: type) -> np.ndarray:
    try:
        column = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Make the index again with launch.pack") from None
    if column.dtype.kind != np.dtype(dtype).kind:
        raise UserError(f"{path} holds {column.dtype}, not {np.dtype(dtype).name}. Make the index again")
    return column


def _check_shapes(folder: Path, manifest: Manifest, columns: dict[str, np.ndarray]) -> None:
    num_boxes = len(columns["box"]) if "box" in columns else 0
    shapes = {"box_start": (manifest.num_samples + 1,), "box": (num_boxes, 4)}
    shapes |= {"box_label": (num_boxes,), "box_difficult": (num_boxes,)}
    for name, column in columns.items():
        path, shape = column_file(folder, name), shapes.get(name, (manifest.num_samples,))
        if column.shape != shape:
            rows = column.shape[0] if column.shape else 0
            raise UserError(f"{path} has {rows} rows, the manifest says {shape[0]}. Make the index again")
    for group in (BOXES, MASKS):
        if (missing := group.keys() - columns.keys()) and len(missing) < len(group):
            raise UserError(f"{folder / 'index'} lacks {', '.join(sorted(missing))}. Make the index again")


def _check_labels(index: Index) -> None:
    """Raises UserError for a label outside the class list."""
    for name, labels in (("label", index.label), ("box_label", index.box_label)):
        if labels is None or not len(labels) or (labels.min() >= 0 and labels.max() < len(index.classes)):
            continue
        row = int(np.flatnonzero((labels < 0) | (labels >= len(index.classes)))[0])
        sample = row
        if name == "box_label" and index.box_start is not None:
            sample = int(index.box_start.searchsorted(row, "right")) - 1
        raise UserError(
            f"{index.location(index.shard[sample])}: sample '{index.key_of(sample)}' has label {labels[row]}, but the "
            f"class list in {index.folder / MANIFEST} has {len(index.classes)} names"
        )


def _check_places(index: Index) -> None:
    """Raises UserError for a row that points outside its shard, or has boxes that are not there."""
    num_shards, sizes = len(index.shards), np.array([shard.size for shard in index.shards], np.int64)
    inside = (index.shard >= 0) & (index.shard < num_shards)
    ends = sizes[np.where(inside, index.shard, 0)]  # the sum of offset and size might not fit into 64 bits
    inside &= (index.offset >= 0) & (index.size > 0) & (index.size <= ends - index.offset)
    inside &= (index.height > 0) & (index.width > 0)
    if index.mask_offset is not None and index.mask_size is not None:
        inside &= (index.mask_offset >= 0) & (index.mask_size > 0) & (index.mask_size <= ends - index.mask_offset)
    if index.box_start is not None and index.box is not None:
        first, last = index.box_start[:-1], index.box_start[1:]
        inside &= (first >= 0) & (first <= last) & (last <= len(index.box))
    if not inside.all():
        row = int(inside.argmin())
        raise UserError(
            f"{index.folder / 'index'}: row {row} ('{index.key_of(row)}') points outside its shard, or has no size. "
            f"The index is damaged: make it again with launch.pack"
        )


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
