"""Images that cannot be decoded: known ones are not tried, new ones are written down. A bad image costs its row.

In: SET/quarantine.tsv (written by launch.lint, and by runs that met a bad image), RUN/quarantine.tsv (what the run
began with), RUN/bad_images.tsv. Out: which rows of a batch to leave out, and which to try one by one. No other row
changes: ids, order and windows stay as they are.

An entry holds the digest of the image's bytes. Once they are others, because the image was mended or because a disk had
damaged it, the entry no longer counts: the next run and the next evaluation try the image again. An entry without a
digest, of an older version, counts until launch.lint --forget removes it.
"""

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import hints
from pipeline.data.index import QUARANTINE, Index, digest
from pipeline.data.storage.reader import Reader
from pipeline.errors import UserError
from pipeline.files import GO_ON, replace, room
from pipeline.locks import locked

BAD_IMAGES = "bad_images.tsv"


class Entry(NamedTuple):
    """One line of a quarantine: the shard's name in the manifest, the sample's key, why it is there, and the digest of
    the image's bytes (see index.digest) as 16 hex digits, "" if it is not known."""

    shard: str
    key: str
    reason: str
    digest: str = ""


def read(path: Path) -> list[Entry]:
    """The entries of a file; none if it does not exist. Raises UserError, naming file and line, if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(text.split("\n")[1:-1], start=2):  # behind the last "\n": what is being written now
        fields = line.split("\t")
        if len(fields) in (3, 4):
            entries.append(Entry(*fields))
        elif line:
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not 'shard, key, reason, digest' with tabs. Mend it"
            )
    return entries


def add(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Append those entries whose image is not in the file yet, with these bytes or with unknown ones, and return them.
    Safe among processes."""
    with locked(path) as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # half a line of a process that was killed
        known: dict[tuple[str, ...], set[str]] = {}
        for entry in read(path):
            known.setdefault(entry[:2], set()).add(entry.digest)
        new = [
            entry
            for entry in dict.fromkeys(entries)
            if entry[:2] not in known or (entry.digest and not known[entry[:2]] & {entry.digest, ""})
        ]
        if path.stat().st_size == 0:
            new.insert(0, Entry(*Entry._fields))
        file.write(as_text(new))  # in one piece; half a line, of a full disk, is cut off above
        return [entry for entry in new if entry != Entry._fields]


def as_text(entries: Iterable[Entry]) -> bytes:
    """The lines of `entries`."""
    lines = [
        [*(re.sub(r"[\t\r\n]", " ", name) for name in entry[:2]), " ".join(entry.reason.split()), entry.digest]
        for entry in entries
    ]
    return "".join("\t".join(line) + "\n" for line in lines).encode("utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class LeftOut:
    """What a run or an evaluation leaves out from its start: the rows `ids`, ascending, listed in `file`. `changed` are
    entries of the set's quarantine that no longer count, since the images' bytes are others."""

    index: Index
    file: Path
    ids: np.ndarray
    changed: Sequence[Entry]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the rows that are left out, whatever the reasons."""
        shards = self.index.shard[self.ids].tolist()
        rows = [
            [self.index.shards[shard].name, self.index.key_of(sample)]
            for shard, sample in zip(shards, self.ids.tolist(), strict=True)
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def lines(self) -> list[str]:
        """What to say of it at the start; nothing if all images are used."""
        root, lines = self.index.shards_root, []
        if len(self.ids):
            count = f"{len(self.ids):,} of {self.index.num_samples:,} images"
            lines.append(f"{count} of {root} are left out: see {self.file}")
        if self.changed:
            file = self.index.folder / QUARANTINE
            lines.append(f"{len(self.changed):,} of the images that {file} lists have other bytes now: tried again")
        return lines


def left_out(index: Index, run: Path | None = None) -> LeftOut:
    """What a run that has begun leaves out (RUN/quarantine.tsv, as it stands), or else a new one or an evaluation: the
    entries of the set's quarantine that still hold. Raises UserError if the file is damaged."""
    if run and (run / QUARANTINE).exists():
        return LeftOut(index, run / QUARANTINE, _rows(index, read(run / QUARANTINE)), ())
    file = index.folder / QUARANTINE
    entries = read(file)
    ids = _ids(index, entries)
    holds = [sample < 0 or _holds(index, sample, entry) for sample, entry in zip(ids, entries, strict=True)]
    out = {sample for sample, held in zip(ids, holds, strict=True) if held}
    changed = {sample: entry for sample, entry in zip(ids, entries, strict=True) if sample not in out}
    return LeftOut(index, file, np.array(sorted(out - {-1}), np.int64), tuple(changed.values()))


def begin(run: Path, index: Index) -> LeftOut:
    """What a run leaves out; its first start writes that down as RUN/quarantine.tsv, to which it then keeps: another
    choice would train on other rows."""
    found = left_out(index, run)
    if found.file.parent != run:
        entries = read(found.file)
        out = set(found.ids.tolist())
        kept = [entry for entry, sample in zip(entries, _ids(index, entries), strict=True) if sample in out]
        replace(run / QUARANTINE, as_text([Entry(*Entry._fields), *kept]), GO_ON)  # half of it would train on others
    return LeftOut(index, run / QUARANTINE, found.ids, found.changed)


def digest_now(index: Index, sample: int) -> str:
    """The digest of an image's bytes as they are now, 16 hex digits; "" if it is not known.

    A local image is read. Of a remote one the index is asked: a shard is compared with the manifest when it comes.
    """
    if index.is_remote:
        return "" if index.digest is None else f"{int(index.digest[sample]):016x}"
    with open(index.location(index.shard[sample]), "rb") as file:
        file.seek(int(index.offset[sample]))
        return f"{digest(file.read(int(index.size[sample]))):016x}"


def with_digests(index: Index, entries: Sequence[Entry]) -> list[Entry]:
    """The entries with the digest of the image's bytes as they are now, where they have none and the index knows the
    image: one whose header is damaged is no sample to a scan of its tar."""
    return [
        entry if entry.digest or sample < 0 else entry._replace(digest=digest_now(index, sample))
        for entry, sample in zip(entries, _ids(index, entries), strict=True)
    ]


def _holds(index: Index, sample: int, entry: Entry) -> bool:
    """Whether the image is the one that was found bad, as far as can be told."""
    return not entry.digest or digest_now(index, sample) in (entry.digest, "")


def _ids(index: Index, entries: Sequence[Entry]) -> list[int]:
    """The row of each entry; -1 where shard or key are not in the index, which harms nobody."""
    numbers = {shard.name: number for number, shard in enumerate(index.shards)}
    rows: dict[int, dict[bytes, int]] = {}
    ids = []
    for entry in entries:
        number = numbers.get(entry.shard, -1)
        if number >= 0 and number not in rows:
            first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
            rows[number] = dict(zip(index.key[first:last].tolist(), range(first, last), strict=True))
        ids.append(rows.get(number, {}).get(entry.key.encode(), -1))
    return ids


def _rows(index: Index, entries: Sequence[Entry]) -> np.ndarray:
    """The rows of entries, ascending."""
    return np.array(sorted(set(_ids(index, entries)) - {-1}), np.int64)


Refuse = Callable[[str], None]


def refuse(reason: str) -> None:
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
        too_many: Refuse = refuse,
        reader: Reader | None = None,
    ):
        self.index = index
        self.reader = reader
        self._compared: set[int] = set()  # shards
        self.limit = limit
        self.too_many = too_many
        self.run_file = run / BAD_IMAGES if run else None
        self._out = left_out(index, run).ids
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
            found = self.reader.read(np.array([sample]))[0]
        else:
            found = self.reader.read_anew(sample)
        self._compared.add(shard)
        return None if np.array_equal(found, image) else found

    def add(self, ids: np.ndarray, reasons: list[str]) -> None:
        """Write down and tell what cannot be decoded; more than `limit` images are too many."""
        new = np.setdiff1d(ids, self._suspects)
        reason_of = dict(zip(ids.tolist(), reasons, strict=True))
        found = [self._entry(sample, reason_of[sample]) for sample in new.tolist()]
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

    def _entry(self, sample: int, reason: str) -> Entry:
        now, packed = digest_now(self.index, sample), self.index.digest
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
            entries = read(self.run_file)
            self.num_found = len(entries)
            self._suspects = np.union1d(self._suspects, _rows(self.index, entries))
