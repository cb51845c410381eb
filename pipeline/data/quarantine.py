"""Images that cannot be decoded: known ones are not tried, new ones are written down. A bad image costs its row.

In: SET/quarantine.tsv (written by launch.lint, and by runs that met a bad image), RUN/bad_images.tsv. Out: which rows
of a batch to leave out, and which to try one by one. No other row changes: ids, order and windows stay as they are.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import hints
from pipeline.data.index import QUARANTINE, Index
from pipeline.disk import GO_ON, room
from pipeline.errors import UserError
from pipeline.locks import lock

BAD_IMAGES = "bad_images.tsv"


class Entry(NamedTuple):
    """One line of a quarantine: the shard's name in the manifest, the sample's key, why it is there."""

    shard: str
    key: str
    reason: str


def read(path: Path) -> list[Entry]:
    """The entries of a file; none if it does not exist. Raises UserError, naming file and line, if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(text.split("\n")[1:-1], start=2):  # behind the last "\n": what is being written now
        fields = line.split("\t")
        if len(fields) == 3:
            entries.append(Entry(*fields))
        elif line:
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not 'shard, key, reason' with tabs. Mend it")
    return entries


def add(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Append those entries whose shard and key are not in the file yet, and return them. Safe among processes."""
    with open(path, "a+b") as file:
        lock(file)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # half a line of a process that was killed
        known = {entry[:2] for entry in read(path)}
        new = [entry for entry in dict.fromkeys(entries) if entry[:2] not in known]
        if path.stat().st_size == 0:
            new.insert(0, Entry(*Entry._fields))
        file.write(as_text(new))  # in one piece, or not at all
        return [entry for entry in new if entry != Entry._fields]


def as_text(entries: Iterable[Entry]) -> bytes:
    """The lines of `entries`."""
    lines = [[*(re.sub(r"[\t\r\n]", " ", name) for name in entry[:2]), " ".join(entry[2].split())] for entry in entries]
    return "".join("\t".join(line) + "\n" for line in lines).encode("utf-8", errors="backslashreplace")


Refuse = Callable[[str], None]


def refuse(reason: str) -> None:
    """Too many bad images end it at once."""
    raise UserError(reason)


class BadImages:
    """The images of one set that are left out, and what happens when a new one turns up.

    A training run (`run` is its folder) leaves out what was in the set's quarantine when it began, which it keeps as
    RUN/quarantine.tsv. What it finds itself is listed in RUN/bad_images.tsv and counted against `limit`, but every
    window of it is tried again: whether a row is trained on depends on the image and its window, never on what was met
    before. Without a run (evaluation) all that is in the set's quarantine counts: a score over half of a set is none.
    `too_many` is told of more than `limit`; more than that from the start raises UserError.
    """

    def __init__(self, index: Index, limit: int, run: Path | None = None, too_many: Refuse = refuse):
        self.index = index
        self.limit = limit
        self.too_many = too_many
        self.run_file = run / BAD_IMAGES if run else None
        begun_with = run / QUARANTINE if run and (run / QUARANTINE).exists() else index.folder / QUARANTINE
        self._out = self._rows(read(begun_with))
        self._suspects = np.zeros(0, np.int64)
        self._state: tuple[int, int] | None = None
        self.num_found = 0 if run else len(self._out)
        self._look()
        if self.num_found > limit:
            raise UserError(self._refusal())

    def among(self, ids: np.ndarray) -> np.ndarray:
        """Which of `ids` to leave out: bool [n]."""
        return np.isin(ids, self._out)

    def suspects(self, ids: np.ndarray) -> np.ndarray:
        """Which of `ids` could not be decoded in another window, or another epoch: bool [n]. To be tried one by one."""
        self._look()
        return np.isin(ids, self._suspects)

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        """Write down and tell what cannot be decoded; more than `limit` images are too many."""
        new = np.setdiff1d(ids, self._suspects)
        reason_of = dict(zip(ids.tolist(), reasons, strict=True))
        found = [
            Entry(self.index.shards[self.index.shard[sample]].name, self.index.key_of(sample), reason_of[sample])
            for sample in new.tolist()
        ]
        self._suspects = np.union1d(self._suspects, new)
        with contextlib.suppress(OSError):  # a set that one may only read; the run's own list is enough
            add(self.index.folder / QUARANTINE, found)
        told = found
        if self.run_file:
            with room(self.run_file, len(as_text(found)), GO_ON):
                told = add(self.run_file, found)
        before = len(read(self.run_file)) - len(told) if self.run_file else self.num_found
        self.num_found = before + len(told)
        for number, entry in enumerate(told, start=before + 1):
            print(
                f"warning: {self.index.shards_root}/{entry.shard}: the image '{entry.key}' cannot be decoded "
                f"({entry.reason}). Its row is left out; {number} such images so far, at most {self.limit} "
                f"(data.max_bad_images)",
                file=sys.stderr,
                flush=True,
            )
        if told and self.num_found > self.limit:
            self.too_many(self._refusal())

    def _refusal(self) -> str:
        where = self.run_file or self.index.folder / QUARANTINE
        look = (
            "where it was packed"
            if self.index.is_remote
            else f"with: {hints.command('launch.lint', self.index.folder)}"
        )
        return (
            f"{self.num_found} images of {self.index.shards_root} cannot be decoded, more than data.max_bad_images="
            f"{self.limit}: {where} lists them. Look at the set {look}; then mend it, or raise data.max_bad_images "
            f"(launch.evaluate: --max-bad-images)"
        )

    def _look(self) -> None:
        """Take in what other ranks, or the run before it was stopped, have found."""
        if self.run_file is None or not self.run_file.exists():
            return
        stat = self.run_file.stat()
        if (stat.st_mtime_ns, stat.st_size) != self._state:
            self._state = stat.st_mtime_ns, stat.st_size
            entries = read(self.run_file)
            self.num_found = len(entries)
            self._suspects = np.union1d(self._suspects, self._rows(entries))

    def _rows(self, entries: list[Entry]) -> np.ndarray:
        """The ids of entries; a shard or sample that is not in the index harms nobody."""
        numbers = {shard.name: number for number, shard in enumerate(self.index.shards)}
        keys: dict[int, list[bytes]] = {}
        for entry in entries:
            if entry.shard in numbers:
                keys.setdefault(numbers[entry.shard], []).append(entry.key.encode())
        found = [np.zeros(0, np.int64)]
        for shard, wanted in keys.items():
            first, last = np.searchsorted(self.index.shard, [shard, shard + 1])
            found.append(first + np.flatnonzero(np.isin(self.index.key[first:last], wanted)))
        return np.unique(np.concatenate(found))
