"""Scanned shards -> the index of their set (see data/index.py): columns and manifest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index import BOXES, COLUMNS, MASKS, OPTIONAL, column_file
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.data.manifest import MANIFEST, VERSION, Shard
from pipeline.errors import UserError
from pipeline.files import file_sha256, whole

Rows = Mapping[str, Sequence[Any]]  # of one shard: by column, a value a sample


def write(
    folder: Path,
    shards: Sequence[tuple[Shard, Rows]],
    classes: list[str],
    shards_root: str = ".",
    rgb: dict | None = None,
    layout: Layout = WEBDATASET,
) -> None:
    """Write the index of `shards` (in order, as scan.scan_shard returns them) into `folder`; the manifest comes last.

    `rgb` is {"mean": 3 floats, "covariance": 3 x 3 floats} over pixels in 0..1, or None. Rows may have `mask_offset`
    and `mask_size`, and `boxes`: of each sample a list of (left, top, right, bottom, label, difficult). The same input
    gives the same bytes. Raises UserError for a key that two shards share, and for raw beside encoded shards.
    """
    (folder / "index").mkdir(parents=True, exist_ok=True)
    counts, rows = [shard.num_samples for shard, _ in shards], [of_one for _, of_one in shards]
    columns: dict[str, np.ndarray] = {"shard": np.repeat(np.arange(len(shards), dtype=COLUMNS["shard"]), counts)}
    for name, dtype in (COLUMNS | OPTIONAL | MASKS).items():
        if name != "shard" and not (name in MASKS and any(name not in of_one for of_one in rows)):
            columns[name] = np.array([value for of_one in rows for value in of_one[name]], dtype=dtype)
    if all("boxes" in of_one for of_one in rows):
        columns |= _ragged([boxes for of_one in rows for boxes in of_one["boxes"]])
    if len(np.unique(columns["key"])) != len(columns["key"]):
        _raise_shared_key(shards)
    forms = {shard.form for shard in map(itemgetter(0), shards) if shard.num_samples}
    if len(forms) > 1:
        raw = next(shard.name for shard, _ in shards if shard.form == "raw")
        raise UserError(f"{raw} holds raw pixels, other shards encoded images. Make sets of one form")
    for name, column in columns.items():
        np.save(column_file(folder, name), column)
    manifest = {
        "version": VERSION,
        "num_samples": sum(counts),
        "shards_root": shards_root,
        "layout": layout._asdict() if layout != WEBDATASET else None,
        "rgb": rgb,
        "columns": {name: file_sha256(column_file(folder, name)) for name in columns},
        "shards": [asdict(shard) for shard, _ in shards],
        "classes": list(classes),
    }
    with whole(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


def _ragged(samples: list[Sequence[tuple]]) -> dict[str, np.ndarray]:
    flat = np.array([box for boxes in samples for box in boxes], np.float64).reshape(-1, 6)
    columns = {
        "box_start": np.cumsum([0, *map(len, samples)]),
        "box": flat[:, :4],
        "box_label": flat[:, 4],
        "box_difficult": flat[:, 5],
    }
    return {name: column.astype(BOXES[name]) for name, column in columns.items()}


def _raise_shared_key(shards: Sequence[tuple[Shard, Rows]]) -> None:
    home: dict[bytes, str] = {}
    for shard, columns in shards:
        for key in columns["key"]:
            if key in home:
                raise UserError(f"the key '{key.decode()}' is in {home[key]} and in {shard.name}. Keys must be unique")
            home[key] = shard.name
