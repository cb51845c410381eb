"""Lists of images that cannot be decoded: what a set's says, and what a run keeps to.

In: SET/quarantine.tsv (written by launch.lint, and by runs that met a bad image), RUN/quarantine.tsv (what the run
began with). Out: the rows to leave out.

An entry holds the digest of the image's bytes. Once they are others, because the image was mended or because a disk had
damaged it, the entry no longer counts: the next run and the next evaluation try the image again. An entry without a
digest, of an older version, counts until launch.lint --forget removes it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.data.index import QUARANTINE, Index, digest
from pipeline.errors import UserError
from pipeline.files import GO_ON, replace
from pipeline.locks import locked


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
        return LeftOut(index, run / QUARANTINE, rows_of(index, read(run / QUARANTINE)), ())
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
    left = left_out(index, run)
    if left.file.parent != run:
        entries = read(left.file)
        out = set(left.ids.tolist())
        kept = [entry for entry, sample in zip(entries, _ids(index, entries), strict=True) if sample in out]
        replace(run / QUARANTINE, as_text([Entry(*Entry._fields), *kept]), GO_ON)  # half of it would train on others
    return LeftOut(index, run / QUARANTINE, left.ids, left.changed)


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


def rows_of(index: Index, entries: Sequence[Entry]) -> np.ndarray:
    """The rows of entries, ascending."""
    return np.array(sorted(set(_ids(index, entries)) - {-1}), np.int64)
