"""What can be wrong with a set: the kinds of findings, how bad each is, and what to do about it.

In: findings, one by one. Out: how many there are of each kind, and the first `LISTED` of them with shard and key.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

LISTED = 1000  # of a kind, in lint.json; more of them are counted
ERROR, WARNING, INFO = SEVERITIES = ("error", "warning", "info")


class Kind(NamedTuple):
    """`severity` error: training would fail or lose the row, or the set contradicts itself; warning: worth a look."""

    severity: str
    title: str
    action: str


_AGAIN = "Make this shard again"
# The worst come first: the first kind that was found gives the next action.
KINDS = {
    "missing_shard": Kind(ERROR, "missing shards", "Bring the shard back, or pack the set again"),
    "unreadable": Kind(ERROR, "shards that cannot be read", "Look at permissions and at the disk, then lint again"),
    "truncated": Kind(ERROR, "truncated or damaged tars", "Fetch or make this shard again"),
    "changed_shard": Kind(
        ERROR, "shards that changed since they were indexed", "Bring the old file back, or index again with launch.pack"
    ),
    "index": Kind(ERROR, "damaged files of the index", "Index again with launch.pack"),
    "no_samples": Kind(
        ERROR,
        "no samples at all",
        "Where members have other names, index them with launch.pack --image ... --label ... and lint OUT",
    ),
    "name": Kind(ERROR, "file names that are not printable UTF-8", _AGAIN),
    "sparse": Kind(
        ERROR, "members stored with holes or as links", "Make this shard again, without tar -S, with tar -h"
    ),
    "mixed": Kind(ERROR, "raw pixels among encoded images", "Make sets of one form"),
    "duplicate_key": Kind(ERROR, "keys that come twice", f"{_AGAIN} with unique keys, a key's files together"),
    "missing": Kind(ERROR, "samples without image or label", f"{_AGAIN} with both, or without the sample"),
    "label": Kind(ERROR, "labels that are no class", "Mend the .cls files, or index with the right --classes"),
    "undecodable": Kind(
        ERROR,
        "images that cannot be decoded",
        "Put good copies in and make the shard again, or train without them: rows in the set's quarantine.tsv are left "
        "out",
    ),
    "two_labels": Kind(
        ERROR, "the same image under two labels", "Decide which label is right and make the shard again"
    ),
    "decoders_differ": Kind(
        WARNING,
        "images that Pillow shows differently, or not at all",
        "Look at them; launch.pack makes them the same for every decoder when it packs the original files",
    ),
    "duplicate_image": Kind(WARNING, "the same image twice", "Keep one of each, unless the repetition is meant"),
    "shared_image": Kind(
        WARNING,
        "images that another of these sets holds too",
        "Score on images that training has not seen: take them out of one of the sets",
    ),
    "other_classes": Kind(WARNING, "class lists that differ", "Pack both sets with one --classes list"),
    "no_end": Kind(WARNING, "tars without an end mark", "They may be cut between two samples: compare with the source"),
    "empty_shard": Kind(WARNING, "shards without a good sample", "Leave the shard out, or make it again"),
    "one_class": Kind(WARNING, "one class alone", "Nothing can be learnt from it: pack it with others"),
    "own_class": Kind(WARNING, "images that are each a class of their own", "Name what holds the class: --label"),
    "from_one": Kind(WARNING, "labels that seem to count from 1", "Write labels from 0 and pack again"),
    "empty_class": Kind(WARNING, "classes without images", "Labels count from 0; check class list and labels"),
    "wrong_name": Kind(WARNING, "images under another format's name", "Harmless in training; rename for other tools"),
    "animated": Kind(
        WARNING, "images of several frames", "Training sees the first frame; check that it is the right one"
    ),
    "cmyk": Kind(WARNING, "CMYK images", "Their profile is ignored: convert them to RGB where exact colours matter"),
    "tiny": Kind(WARNING, "images under 32 px", "Check that they are no thumbnails or icons"),
    "huge": Kind(WARNING, "images over 40 megapixels", "They slow decoding: shrink them with launch.pack --short-side"),
    "constant": Kind(WARNING, "images of a single colour", "Nothing can be learnt from them: check the source"),
    "rotated": Kind(
        WARNING,
        "photos that EXIF would rotate",
        "Training ignores EXIF, as torchvision does: rotate the pixels if it matters",
    ),
    "stale_quarantine": Kind(WARNING, "quarantined images that are fine now", "Remove the entries with --forget"),
    "grayscale": Kind(INFO, "grayscale images", "Nothing to do: they become RGB"),
    "sixteen_bit": Kind(INFO, "16-bit images", "Nothing to do: training keeps the upper 8 bits"),
    "by_pillow": Kind(
        INFO,
        "images of kinds that Pillow decodes in place of DALI",
        "Nothing to do; if there are many, launch.pack makes PNGs of the original files, which load faster",
    ),
    "imbalance": Kind(INFO, "classes of very different size", "Nothing to do, unless every class matters the same"),
}


class Finding(NamedTuple):
    """One thing that is wrong; `key` is "" for a whole shard, `shard` is "" for the set."""

    kind: str
    shard: str
    key: str
    message: str


class Findings:
    """Counts of each kind, and the first `listed` findings of each."""

    def __init__(self, listed: int = LISTED):
        self.counts: Counter[str] = Counter()
        self._first: dict[str, list[Finding]] = {}
        self.listed = listed

    def add(self, kind: str, shard: str, key: str, message: str) -> None:
        self.extend([Finding(kind, shard, key, message)], {kind: 1})

    def extend(self, findings: Iterable[Finding], counts: dict[str, int]) -> None:
        """Take in `findings`, the first of `counts` many."""
        self.counts.update(counts)
        for finding in findings:
            first = self._first.setdefault(finding.kind, [])
            if len(first) < self.listed:
                first.append(finding)

    def __iter__(self):
        """The listed findings, the worst kinds first."""
        for kind in KINDS:
            yield from self._first.get(kind, [])

    def of(self, kind: str) -> list[Finding]:
        return self._first.get(kind, [])

    def severities(self) -> dict[str, int]:
        """How many errors, warnings and infos there are."""
        return {
            severity: sum(count for kind, count in self.counts.items() if KINDS[kind].severity == severity)
            for severity in SEVERITIES
        }

    def as_json(self) -> dict[str, Any]:
        kinds = {
            kind: {**about._asdict(), "count": self.counts[kind], "listed": len(self.of(kind))}
            for kind, about in KINDS.items()
            if self.counts[kind]
        }
        return {
            "counts": self.severities(),
            "listed_per_kind": self.listed,
            "kinds": kinds,
            "findings": [finding._asdict() for finding in self],
        }
