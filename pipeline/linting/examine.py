"""One shard, looked at by one worker: its tar, its labels, every image decoded as training decodes it.

In: a job. Out: a record (JSON: counts, findings, statistics) and the digests of keys and images (.npz) beside it, from
which `repeats.py` knows what comes twice in a set.
"""

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.index import digest
from pipeline.data.layout import WEBDATASET, Layout, numbers
from pipeline.data.manifest import Shard
from pipeline.errors import UserError
from pipeline.linting import sizes
from pipeline.linting.findings import Findings
from pipeline.linting.picture import of_size, picture
from pipeline.linting.pixels import Stored, decoded, disagreement, is_constant, quiet, raw_pixels
from pipeline.packing.scan import Components, scan_shard
from pipeline.workers import tick

RENAMED = {"duplicate": "duplicate_key"}  # the scan's words for kinds that are called otherwise here
END_MARK_BYTES = 1024


@dataclass(frozen=True)
class Job:
    """Look at `tar`, called `name`; `expected` is its entry in the manifest, if it has one.

    Progress counts `size` images if `by_image`, else as many MB.
    """

    tar: Path
    name: str
    size: int
    by_image: bool
    record: Path  # without suffix
    expected: Shard | None = None
    classes: tuple[str, ...] | None = None
    layout: Layout = WEBDATASET


class _Shard:
    """What is known of the shard so far."""

    def __init__(self, job: Job):
        self.job = job
        self.findings = Findings()
        self.bad: set[int] = set()  # rows that cannot be decoded
        self.quarantine: list[tuple[str, str, str]] = []  # (key, reason, digest of the bytes as Entry has it)
        self.sizes = sizes.no_sizes()
        self.counts: dict[str, Counter] = {"formats": Counter(), "modes": Counter(), "labels": Counter()}
        self.extensions: dict[int, str] = {}  # by the offset of the file
        self.form = "encoded"
        self.columns: dict[str, list] = {}
        self.is_whole = True
        self._ticked = 0

    def say(self, kind: str, key: str, message: str) -> None:
        self.findings.add(kind, self.job.name, key, message)

    def problem(self, path: Path, key: str, kind: str, message: str) -> None:
        """As `scan_shard` wants it."""
        self.say(RENAMED.get(kind, kind), key, message)
        if kind == "undecodable":
            self.quarantine.append((key, message, ""))  # no row of an index
        if kind == "truncated":
            self.is_whole = False

    def sample(self, key: str, components: Components) -> None:
        tick(0)
        self.extensions |= {offset: extension for extension, (offset, _) in components.items()}

    def key(self, row: int) -> str:
        return self.columns["key"][row].decode()

    def advance(self, now: int) -> None:
        """Count up to `now`, in the unit of the job's `size`."""
        now = min(now, self.job.size)
        tick(max(0, now - self._ticked))
        self._ticked = max(self._ticked, now)


def work(job: Job) -> None:
    """Look at the shard and leave its record. Raises UserError when there is no room for it."""
    shard = _Shard(job)
    try:
        _scan(shard)
        _look_at_images(shard)
    except OSError as error:
        shard.is_whole = False
        shard.columns = {}  # of what was not looked at to the end nothing is said
        shard.say("unreadable", "", f"cannot be read: {error.strerror or error}")
    shard.advance(sys.maxsize)
    keys = shard.columns.get("key", [])
    good = [row not in shard.bad for row in range(len(keys))]
    record = {
        "num_images": len(keys),
        "num_decodable": sum(good),
        "is_whole": shard.is_whole,
        "counts": dict(shard.findings.counts),
        "findings": list(shard.findings),
        "quarantine": shard.quarantine,
        "sizes": shard.sizes,
        **{name: sorted(count.items()) for name, count in shard.counts.items()},
        "form": shard.form if keys else None,
    }
    arrays: dict[str, Any] = {
        name: np.array(shard.columns.get(name, []), np.int64) for name in ("label", "offset", "size", "height", "width")
    }
    arrays |= {"key": np.array(keys, np.bytes_), "key_digest": np.array([digest(key) for key in keys], np.uint64)}
    arrays |= {"digest": np.array(shard.columns.get("digest", []), np.uint64)}
    arrays |= {"good": np.array(good, bool), "raw": np.full(len(keys), shard.form == "raw")}
    try:
        job.record.with_suffix(".json").write_text(json.dumps(record))
        np.savez(job.record.with_suffix(".npz"), **arrays)
    except OSError as error:
        raise UserError(f"{error}. Make room there, or set TMPDIR to another folder") from None


def _scan(shard: _Shard) -> None:
    job = shard.job
    scanned, shard.columns = scan_shard(
        job.tar, job.name, shard.problem, shard.sample, job.layout, numbers(job.classes)
    )
    shard.form = scanned.form
    if job.expected and scanned.size != job.expected.size:
        shard.say("changed_shard", "", f"has {scanned.size} bytes, the manifest says {job.expected.size}")
    elif job.expected and scanned.sha256 != job.expected.sha256:
        shard.say("changed_shard", "", "its SHA-256 is not the one in the manifest")
    with open(job.tar, "rb") as file:
        file.seek(max(0, scanned.size - END_MARK_BYTES))
        if shard.is_whole and file.read().strip(b"\0"):
            shard.say("no_end", "", "ends without the two empty blocks that close a tar")
    if not scanned.num_samples and shard.is_whole:
        shard.say("empty_shard", "", "holds no sample with image and label")
    for row, label in enumerate(shard.columns["label"]):
        key, last = shard.key(row), len(job.classes) - 1 if job.classes else sys.maxsize
        holds = f"'{key}.{job.layout.label_extension}' holds {label}"
        if label < 0:
            shard.say("label", key, f"{holds}. Labels count from 0")
        elif label > last:
            shard.say("label", key, f"{holds}, but the class list ends at {last}")
        else:
            shard.counts["labels"][label] += 1


def _look_at_images(shard: _Shard) -> None:
    """Decode all images as training does."""

    def on_bad(rows: np.ndarray, reasons: list[str]) -> None:
        for row, reason in zip(rows.tolist(), reasons, strict=True):
            key = shard.key(row)
            shard.bad.add(row)
            shard.quarantine.append((key, reason, f"{shard.columns['digest'][row]:016x}"))
            shard.say("undecodable", key, f"sample '{key}': {reason}")

    with open(shard.job.tar, "rb") as file, quiet():
        stored = _stored(shard, file)
        for row, pixels, encoded in raw_pixels(stored) if shard.form == "raw" else decoded(stored, on_bad):
            if row not in shard.bad and is_constant(pixels):
                key, colour = shard.key(row), pixels[0, 0].tolist()
                shard.say("constant", key, f"sample '{key}' is one colour all over, RGB {colour}")
            if row not in shard.bad and encoded and (told := disagreement(encoded, pixels)):
                shard.say("decoders_differ", shard.key(row), f"sample '{shard.key(row)}' {told}")
            end = shard.columns["offset"][row] + shard.columns["size"][row]
            shard.advance(row + 1 if shard.job.by_image else end >> 20)


def _stored(shard: _Shard, file: io.BufferedReader) -> Iterator[Stored]:
    """All images in turn, with what their headers tell taken down."""
    columns, counts = shard.columns, shard.counts
    for row, (offset, size) in enumerate(zip(columns["offset"], columns["size"], strict=True)):
        stored = Stored(row, os.pread(file.fileno(), size, offset), columns["height"][row], columns["width"][row])
        key = shard.key(row)
        sizes.add(shard.sizes, shard.job.name, key, stored.height, stored.width)
        oddities = list(of_size(stored.height, stored.width))
        if shard.form == "raw":
            counts["formats"]["raw"] += 1
        else:
            seen = picture(stored.content, shard.extensions[offset])
            oddities += seen.oddities
            counts["formats"][seen.format] += 1
            counts["modes"][seen.mode] += 1
        for kind, text in oddities:
            shard.say(kind, key, f"sample '{key}' {text}")
        yield stored
