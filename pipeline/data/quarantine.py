"""Images that cannot be decoded: known ones are not tried, new ones are written down. A bad image costs its row.

In: SET/quarantine.tsv (written by launch.lint, and by runs that met a bad image), RUN/bad_images.tsv. Out: which rows
of a batch to leave out. Leaving out changes no other row: ids, order and windows stay as they are.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.data.index import QUARANTINE, Index
from pipeline.errors import UserError

BAD_IMAGES = "bad_images.tsv"


class Entry(NamedTuple):
    """One line of a quarantine: the shard's name in the manifest, the sample's key, why it is there."""

    shard: str
    key: str
    reason: str


def read(path: Path) -> list[Entry]:
    """The entries of a file; none if it does not exist. Raises UserError, naming file and line, if it is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) == 3:
            entries.append(Entry(*fields))
        elif line:
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not 'shard, key, reason' with tabs. Mend it")
    return entries


def add(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Append those entries whose shard and key are not in the file yet, and return them. Safe among processes."""
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        known = {entry[:2] for entry in read(path)}
        new = [entry for entry in dict.fromkeys(entries) if entry[:2] not in known]
        if os.fstat(file.fileno()).st_size == 0:
            file.write("\t".join(Entry._fields) + "\n")
        for entry in new:
            file.write("\t".join([entry.shard, entry.key, " ".join(entry.reason.split())]) + "\n")
    return new


class BadImages:
    """The images of one set that are left out, and what happens when a new one turns up.

    `run` is the run's folder: its bad_images.tsv is shared by all ranks, which see each other's findings. Without one
    (evaluation alone) findings go to the set's quarantine only.
    """

    def __init__(self, index: Index, limit: int, run: Path | None = None):
        self.index = index
        self.limit = limit
        self.run_file = run / BAD_IMAGES if run else None
        self.num_found = 0  # by this process, or by all ranks of the run
        names = {shard.name: number for number, shard in enumerate(index.shards)}
        self._ids = self._rows(read(index.folder / QUARANTINE), names)
        self.num_known = len(self._ids)
        self._locations = {index.location(number): number for number in range(len(index.shards))}
        self._state: tuple[int, int] | None = None

    def among(self, ids: np.ndarray) -> np.ndarray:
        """Which of `ids` to leave out: bool [n]."""
        self._look()
        return np.isin(ids, self._ids)

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        """Write down and tell what cannot be decoded. Raises UserError when that is more than `limit` images."""
        number = self.index.shard[ids]
        found = [
            Entry(self.index.location(shard), self.index.key_of(sample), reason)
            for shard, sample, reason in zip(number.tolist(), ids.tolist(), reasons, strict=True)
        ]
        self._ids = np.union1d(self._ids, ids)
        new = add(self.run_file, found) if self.run_file else found
        with contextlib.suppress(OSError):  # a set that one may only read; the run's own list is enough
            named = zip(number.tolist(), found, strict=True)
            add(self.index.folder / QUARANTINE, [e._replace(shard=self.index.shards[n].name) for n, e in named])
        self.num_found = len(read(self.run_file)) if self.run_file else self.num_found + len(found)
        for entry in new:
            print(
                f"warning: {entry.shard}: the image '{entry.key}' cannot be decoded ({entry.reason}). Its row is left "
                f"out; {self.num_found} such images so far, at most {self.limit} (data.max_bad_images)",
                file=sys.stderr,
                flush=True,
            )
        if self.num_found > self.limit:
            where = self.run_file or self.index.folder / QUARANTINE
            look = "where it was packed" if self.index.is_remote else f"with: python -m launch.lint {self.index.folder}"
            raise UserError(
                f"{self.num_found} images cannot be decoded, more than data.max_bad_images={self.limit}: {where} lists "
                f"them. Look at the set {look}; or raise data.max_bad_images"
            )

    def _look(self) -> None:
        """Take in what other ranks, or the run before it was stopped, have found."""
        if self.run_file is None or not self.run_file.exists():
            return
        stat = self.run_file.stat()
        if (stat.st_mtime_ns, stat.st_size) != self._state:
            self._state = stat.st_mtime_ns, stat.st_size
            self._ids = np.union1d(self._ids, self._rows(read(self.run_file), self._locations))

    def _rows(self, entries: list[Entry], numbers: dict[str, int]) -> np.ndarray:
        """The ids of entries whose shard has a number; a sample that is not in the index harms nobody."""
        keys: dict[int, list[bytes]] = {}
        for entry in entries:
            if entry.shard in numbers:
                keys.setdefault(numbers[entry.shard], []).append(entry.key.encode())
        found = [np.zeros(0, np.int64)]
        for shard, wanted in keys.items():
            first, last = np.searchsorted(self.index.shard, [shard, shard + 1])
            found.append(first + np.flatnonzero(np.isin(self.index.key[first:last], wanted)))
        return np.unique(np.concatenate(found))
