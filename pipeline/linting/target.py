"""What is linted: a packed set with its index, or tars that have none.

In: SHARDS as the user gives it. Out: a `Target`: the shards in order, and what the index promises of them.
"""

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline import hints
from pipeline.data import index
from pipeline.data.index import Index
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.data.manifest import MANIFEST, Shard
from pipeline.data.storage.remote import is_remote
from pipeline.errors import UserError
from pipeline.files import file_sha256
from pipeline.linting.examine import Job
from pipeline.packing import sources
from pipeline.packing.listing import SHARDS


@dataclass(frozen=True)
class Target:
    """`shards` are (name, path, manifest's entry if any) of those that are there, `missing` are (name, path)."""

    home: Path  # where results go
    shards: list[tuple[str, Path, Shard | None]]
    missing: list[tuple[str, Path]]
    classes: tuple[str, ...] | None
    damaged: list[str]  # files of the index
    layout: Layout = WEBDATASET
    packed: Index | None = None

    @property
    def by_image(self) -> bool:
        """Whether the number of images is known before looking."""
        return self.classes is not None

    def jobs(self, records: Path) -> list[Job]:
        """One for each shard; each leaves its record in the folder `records`."""
        return [
            Job(
                tar=path,
                name=name,
                size=expected.num_samples if expected else path.stat().st_size >> 20,
                by_image=self.by_image,
                record=records / f"{number:06d}",
                expected=expected,
                classes=self.classes,
                layout=self.layout,
            )
            for number, (name, path, expected) in enumerate(self.shards)
        ]


def all_targets(source: str) -> dict[str, Target]:
    """The sets that `source` names: itself, or those in the folder that launch.pack wrote. Raises as `target` does."""
    inside = sorted(manifest.parent for manifest in Path(source).glob(f"*/{MANIFEST}")) if not is_remote(source) else []
    if inside and not (Path(source) / MANIFEST).exists():
        return {str(folder): target(str(folder)) for folder in inside}
    return {source: target(source)}


def target(source: str) -> Target:
    """Recognise SHARDS. Raises UserError: no such thing, a URL, images instead of shards, several sets, no index."""
    if is_remote(source):
        raise UserError(f"{source} is remote. Lint the set where it was packed, before uploading it")
    folder = Path(source)
    if (folder / MANIFEST).exists():
        return _packed(index.load(folder, verify=False))
    if not folder.exists() and not glob.has_magic(source) and "{" not in source:
        raise UserError(
            f"{source} does not exist. Give a packed set's folder, a folder of .tar shards, a .tar or a glob"
        )
    origin = sources.find(source)
    if origin.kind != SHARDS:
        raise UserError(f"{source} is {origin.kind}, not shards. Pack it first: {_pack(source)}")
    if len(origin.files) > 1:
        name = next(iter(origin.files))
        raise UserError(
            f"{source} holds shards of several sets ({', '.join(origin.files)}). Lint one at a time, "
            f"such as '{origin.root}/*{name}*.tar'"
        )
    files = [file for listed in origin.files.values() for file in listed]
    if origin.compressed:
        raise UserError(f"{source} is compressed. Pack it first, which unpacks it: {_pack(source)}")
    return Target(origin.root, [(file.name, origin.root / file.name, None) for file in files], [], None, [])


def _pack(source: str) -> str:
    return hints.command("launch.pack", source, "OUT")


def _packed(loaded: index.Index) -> Target:
    if loaded.is_remote:
        raise UserError(
            f"{loaded.folder / MANIFEST} points at shards in {loaded.shards_root}. Lint the set where it was packed, "
            f"before uploading it"
        )
    paths = [Path(loaded.location(number)) for number in range(len(loaded.shards))]
    there = [os.path.lexists(path) for path in paths]
    entries = list(zip(loaded.shards, paths, there, strict=True))
    checksums = json.loads((loaded.folder / MANIFEST).read_text()).get("columns", {})
    columns = {f"index/{name}.npy": checksum for name, checksum in sorted(checksums.items())}
    return Target(
        home=loaded.folder,
        shards=[(shard.name, path, shard) for shard, path, is_there in entries if is_there],
        missing=[(shard.name, path) for shard, path, is_there in entries if not is_there],
        classes=loaded.classes,
        layout=loaded.layout,
        packed=loaded,
        damaged=[name for name, checksum in columns.items() if file_sha256(loaded.folder / name) != checksum],
    )
