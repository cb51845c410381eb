"""Images that cannot be decoded: known ones are not tried, new ones are written down. A bad image costs its row.

In: ids, and what a decoder says against their images. Out: which rows of a batch to leave out, and which to try one by
one; RUN/bad_images.tsv. No other row changes: ids, order and windows stay as they are.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline import hints
from pipeline.data import quarantine
from pipeline.data.index import QUARANTINE, Index, digest
from pipeline.data.quarantine import Entry
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError
from pipeline.files import GO_ON, room

BAD_IMAGES = "bad_images.tsv"
TooManyBad = Callable[[str], None]


def raise_too_many(reason: str) -> None:
    """Too many bad images end it at once."""
    raise UserError(reason)


class BadImages:
    """The images of one set that are left out, and what happens when a new one turns up.

    A training run (`run` is its folder) leaves out what of the set's quarantine held when it began (`begin`). What it
    finds itself is listed in RUN/bad_images.tsv and counted against `limit`, but every window of it is tried again:
    whether a row is trained on depends on the image and its window, never on what was met before. Without a run
    (evaluation) all that holds of the set's quarantine counts: a score over half of a set is none.
    `too_many` is told of more than `limit`; more than that from the start raises UserError. `reader` reads remote
    images again that a disk may have damaged.
    """

    def __init__(
        self,
        index: Index,
        limit: int,
        run: Path | None = None,
        too_many: TooManyBad = raise_too_many,
        reader: Reader | None = None,
    ):
        self.index = index
        self.reader = reader
        self._compared: set[int] = set()  # shards
        self.limit = limit
        self.too_many = too_many
        self.run_file = run / BAD_IMAGES if run else None
        self._out = quarantine.left_out(index, run).ids
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

    def mended(self, sample: int, image: np.ndarray) -> np.ndarray | None:
        """The bytes of a remote image if `image`, which cannot be decoded, is not what the set holds: its shard was
        damaged in the cache, and has been fetched again. Shards are compared with their checksum once."""
        if self.reader is None or not self.index.is_remote:
            return None
        if self.index.digest is not None and digest(image.tobytes()) == self.index.digest[sample]:
            return None
        shard = int(self.index.shard[sample])
        if shard in self._compared:
            stored = self.reader.read(np.array([sample]))[0]
        else:
            stored = self.reader.read_anew(sample)
        self._compared.add(shard)
        return None if np.array_equal(stored, image) else stored

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        """Write down and tell what cannot be decoded; more than `limit` images are too many."""
        new = np.setdiff1d(ids, self._suspects)
        reason_of = dict(zip(ids.tolist(), reasons, strict=True))
        entries = [self._entry(sample, reason_of[sample]) for sample in new.tolist()]
        self._suspects = np.union1d(self._suspects, new)
        with contextlib.suppress(OSError):  # a set that one may only read; the run's own list is enough
            quarantine.add(self.index.folder / QUARANTINE, entries)
        told = entries
        if self.run_file:
            with room(self.run_file, len(quarantine.as_text(entries)), GO_ON):
                told = quarantine.add(self.run_file, entries)
        before = len(quarantine.read(self.run_file)) - len(told) if self.run_file else self.num_found
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

    def _entry(self, sample: int, reason: str) -> Entry:
        now, packed = quarantine.digest_now(self.index, sample), self.index.digest
        if now and packed is not None and int(now, 16) != int(packed[sample]):
            reason += "; the shard was damaged since it was packed, these are other bytes"
        return Entry(self.index.shards[self.index.shard[sample]].name, self.index.key_of(sample), reason, now)

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
            entries = quarantine.read(self.run_file)
            self.num_found = len(entries)
            self._suspects = np.union1d(self._suspects, quarantine.rows_of(self.index, entries))
