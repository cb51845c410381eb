"""manifest.json of a packed set: its shards with sizes and checksums, its classes, and the checksums of its columns.

In: the set's folder. Out: a `Manifest`, or UserError: it may come from elsewhere, and paths are made of what it says.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pipeline import hints
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.errors import UserError

MANIFEST = "manifest.json"
VERSION = 2
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar: `name` relative to the set's `shards_root`, `size` in bytes, `sha256` of the whole file; `form` is
    "encoded" (JPEG, PNG, WebP) or "raw" (uint8 pixels). ValueError for what no shard is."""

    name: str
    size: int
    sha256: str
    num_samples: int
    form: str = "encoded"

    def __post_init__(self) -> None:
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
class Manifest:
    """`shards_root` is a URL, a whole path, or relative to the set; `columns` holds the SHA-256 of each column's file,
    by name; `rgb_mean` and `rgb_covariance` are of all pixels, in 0..1, or None."""

    num_samples: int
    shards_root: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    columns: dict[str, str]
    rgb_mean: tuple[float, ...] | None
    rgb_covariance: tuple[tuple[float, ...], ...] | None
    layout: Layout


def read(folder: Path) -> Manifest:
    """Raises UserError, naming the file, if there is none, it is damaged, of another version, or of an empty set."""
    path = folder / MANIFEST
    try:
        tree = json.loads(path.read_text())
        if tree["version"] != VERSION:
            raise UserError(
                f"{path} has version {tree['version']}, this program reads {VERSION}. Make it again with launch.pack"
            )
        given, rgb = tree.get("layout"), tree.get("rgb") or {}
        manifest = Manifest(
            num_samples=tree["num_samples"],
            shards_root=tree["shards_root"],
            shards=tuple(Shard(**shard) for shard in tree["shards"]),
            classes=tuple(tree["classes"]),
            columns=tree.get("columns", {}),
            rgb_mean=tuple(rgb["mean"]) if rgb else None,
            rgb_covariance=tuple(map(tuple, rgb["covariance"])) if rgb else None,
            layout=Layout(tuple(given["image"]), given["label"], tuple(given["suffixes"])) if given else WEBDATASET,
        )
        num, root, sums = manifest.num_samples, manifest.shards_root, manifest.columns
        if type(num) is not int or not isinstance(root, str) or not isinstance(sums, dict):
            raise ValueError(f"num_samples={num!r:.40}, shards_root={root!r:.40}, columns={sums!r:.40}")
        if not all(isinstance(name, str) for name in manifest.classes):
            raise ValueError("classes must be names")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_no_set(folder)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Make it again with launch.pack") from None
    if not manifest.num_samples:
        raise UserError(f"{folder} holds no samples: every shard is empty. Pack a folder that has images in it")
    return manifest


def _no_set(folder: Path) -> str:
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
