"""What comes twice: keys in two shards of a set, images with the same bytes in one set or in two.

In: the digests that `examine.py` left for each shard. Out: findings. 1.28 M images take 40 MB.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.linting.findings import Findings


class Place(NamedTuple):
    """Where an image lies: `size` bytes at `offset` of the shard numbered `shard`; `raw` if they are its pixels."""

    shard: int
    offset: int
    size: int
    height: int
    width: int
    label: int
    raw: int


class Digests:
    """The digests of all shards in order. `names` and `records` (paths without suffix) are the shards', `classes` the
    set's class list if there is one."""

    def __init__(self, names: list[str], records: list[Path], classes: tuple[str, ...] | None = None):
        self._names, self._records, self.classes = names, records, classes
        parts = [self._load(number) for number in range(len(names))]
        counts = [len(part["key_digest"]) for part in parts]
        self._first = np.cumsum([0, *counts])
        self._shard = np.repeat(np.arange(len(names)), counts)
        dtypes = {"key_digest": np.uint64, "digest": np.uint64, "label": np.int64, "good": bool}
        self._column = {
            column: np.concatenate([np.zeros(0, dtype), *(part[column] for part in parts)])
            for column, dtype in dtypes.items()
        }

    def _load(self, number: int) -> dict[str, np.ndarray]:
        with np.load(self._records[number].with_suffix(".npz")) as record:
            return {column: record[column] for column in ("key_digest", "digest", "label", "good")}

    @lru_cache(maxsize=16)  # noqa: B019  # lives as long as the one Digests of a run
    def _rows(self, number: int) -> dict[str, np.ndarray]:
        """What is looked up of few images only."""
        with np.load(self._records[number].with_suffix(".npz")) as record:
            return {column: record[column] for column in ("key", *Place._fields[1:])}

    def _where(self, row: int) -> tuple[str, str]:
        """Shard and key of a row."""
        number = int(self._shard[row])
        return self._names[number], bytes(self._rows(number)["key"][row - self._first[number]]).decode()

    def place(self, shard: str, key: str) -> Place | None:
        """Of the image with this key; None if the shard has no such image."""
        if shard not in self._names:
            return None
        number = self._names.index(shard)
        rows = self._rows(number)
        matches = np.flatnonzero(rows["key"] == key.encode())
        if not len(matches):
            return None
        return Place(number, *(int(rows[column][matches[0]]) for column in Place._fields[1:]))

    def named(self, label: int) -> str:
        """A label for people: its number, and its name if there is a class list."""
        known = self.classes is not None and 0 <= label < len(self.classes)
        return f"label {label} ('{self.classes[label]}')" if self.classes and known else f"label {label}"

    def tell(self, findings: Findings) -> None:
        """Add what comes twice, in the order of the set."""
        for first, *others in _groups(self._column["key_digest"], np.arange(len(self._shard))):
            for other in others:
                if self._shard[first] != self._shard[other]:  # the scan tells of those in one shard
                    (shard, key), (home, _) = self._where(other), self._where(first)
                    findings.add("duplicate_key", shard, key, f"the key '{key}' is in {home} too. Keys must be unique")
        label = self._column["label"]
        for first, *others in _groups(self._column["digest"], np.flatnonzero(self._column["good"])):
            for other in others:
                kind = "duplicate_image" if label[first] == label[other] else "two_labels"
                if findings.counts[kind] >= findings.listed:
                    findings.counts[kind] += 1  # without looking up names
                    continue
                (shard, key), (home, twin) = self._where(other), self._where(first)
                labels = " and ".join(self.named(int(number)) for number in dict.fromkeys((label[other], label[first])))
                findings.add(kind, shard, key, f"sample '{key}' is the same image as '{twin}' in {home}: {labels}")

    def tell_shared(self, other: "Digests", called: str, findings: Findings) -> None:
        """Add the images here that `other` holds too, a set called so."""
        here = len(self._column["digest"])
        both = {name: np.concatenate([self._column[name], other._column[name]]) for name in ("digest", "good")}
        for group in _groups(both["digest"], np.flatnonzero(both["good"])):
            if group[0] >= here or group[-1] < here:
                continue
            twin = next(row for row in group if row >= here) - here
            for row in group:
                if row >= here or findings.counts["shared_image"] >= findings.listed:
                    findings.counts["shared_image"] += row < here
                    continue
                (shard, key), (home, name) = self._where(row), other._where(twin)
                labels = (self.named(int(self._column["label"][row])), other.named(int(other._column["label"][twin])))
                findings.add(
                    "shared_image",
                    shard,
                    key,
                    f"sample '{key}' ({labels[0]}) is the same image as '{name}' ({labels[1]}) in {home} of {called}",
                )


def _groups(digests: np.ndarray, rows: np.ndarray) -> Iterator[list[int]]:
    """Rows whose digests are equal, each group and the groups among each other in the order of rows."""
    order = rows[np.argsort(digests[rows], kind="stable")]
    same = np.flatnonzero(digests[order[1:]] == digests[order[:-1]])
    starts = same[np.r_[True, np.diff(same) > 1]] if len(same) else same
    ends = same[np.r_[np.diff(same) > 1, True]] + 2 if len(same) else same
    yield from sorted(order[start:end].tolist() for start, end in zip(starts, ends, strict=True))
