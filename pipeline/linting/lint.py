"""All shards of a set, or of several: examined in parallel, what was found put together and written down.

In: packed sets' folders, or tars without an index. Out, for each set: lint.json, lint.html and, for images that cannot
be decoded, quarantine.tsv. The same sets give the same lint.json, at any number of workers.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import builds
from pipeline.data import quarantine
from pipeline.data.index import QUARANTINE
from pipeline.data.quarantine import Entry
from pipeline.errors import UserError
from pipeline.files import AGAIN, replace, whole
from pipeline.linting import page, sizes, thumbnails
from pipeline.linting.balance import balance
from pipeline.linting.examine import Job, work
from pipeline.linting.findings import Finding, Findings
from pipeline.linting.repeats import Digests
from pipeline.linting.target import Target, all_targets
from pipeline.locks import locked
from pipeline.workers import ProgressBar, run

VERSION = 1
JSON, PAGE = "lint.json", "lint.html"
Report = dict[str, Any]


@dataclass(frozen=True)
class Linted:
    """`report` is what lint.json holds; the rest is about this run alone."""

    report: Report
    folder: Path  # of the results
    home: Path  # of the set
    is_packed: bool
    num_quarantined: int  # entries that are new
    num_forgotten: int


@dataclass(frozen=True)
class _Seen:
    """A set whose shards have been examined."""

    source: str
    target: Target
    folder: Path
    jobs: list[Job]
    findings: Findings
    statistics: Report
    bad: list[Entry]
    unknown: set[str]
    digests: Digests


def lint(
    sources: Sequence[str], out: Path | None, workers: int, meter: ProgressBar, forget: bool = False
) -> list[Linted]:
    """Look at every sample of `sources`, and at what they share; write the results to `out` (default: beside each).

    `forget` removes entries of the quarantine whose images are fine now. Raises UserError for a mistake in the
    arguments, and for a folder that cannot be written to.
    """
    builds.require_dali()
    targets = {source: target for given in sources for source, target in all_targets(given).items()}
    folders = _folders(targets, out)
    with tempfile.TemporaryDirectory(prefix="tencrop-lint-") as records:
        seen = []
        for number, (source, target) in enumerate(targets.items()):
            home = Path(records, str(number))
            home.mkdir()
            jobs = target.jobs(home)
            _examine(jobs, workers, meter)
            seen.append(_Seen(source, target, folders[source], jobs, *_merge(target, jobs)))
        for linted in seen:
            for other in seen:
                if linted is not other:
                    _compare(linted, other)
        return [_settle(linted, [other.source for other in seen if other is not linted], forget) for linted in seen]


def _folders(targets: dict[str, Target], out: Path | None) -> dict[str, Path]:
    """Where the results of each set go. No two sets may share a folder."""
    if out is None:
        folders = {source: target.home for source, target in targets.items()}
    elif len(targets) == 1:
        folders = dict.fromkeys(targets, out)
    else:
        folders = {source: out / target.home.name for source, target in targets.items()}
    of: dict[Path, str] = {}
    for source, folder in folders.items():
        other = of.setdefault(folder.resolve(), source)
        if other != source:
            raise UserError(f"{other} and {source} would both write their results to {folder}. Lint one at a time")
    return {source: _writable(folder) for source, folder in folders.items()}


def _compare(linted: _Seen, other: _Seen) -> None:
    linted.digests.tell_shared(other.digests, other.source, linted.findings)
    here, there = linted.target.classes, other.target.classes
    if here and there and here != there:
        at = next((n for n, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]), None)
        difference = f"{len(here)} classes here, {len(there)} there" if at is None else (
            f"label {at} is '{here[at]}' here, '{there[at]}' there"
        )  # fmt: skip
        linted.findings.add("other_classes", "", "", f"{other.source} has another class list: {difference}")


def _settle(linted: _Seen, others: list[str], forget: bool) -> Linted:
    """Write down what was found, and mend the quarantine."""
    looked_at, folder, findings = linted.target, linted.folder, linted.findings
    known = quarantine.read(folder / QUARANTINE)
    seen = {job.name for job in linted.jobs} - linted.unknown
    settled = {entry.shard for entry in known} - linted.unknown if looked_at.by_image else seen
    stale = _stale(known, linted.bad, settled)
    for entry in [] if forget else stale:
        findings.add("stale_quarantine", entry.shard, entry.key, f"'{entry.key}' is quarantined, but it is fine now")
    if forget and stale:
        _forget(folder / QUARANTINE, set(stale))
    bad = quarantine.with_digests(looked_at.packed, linted.bad) if looked_at.packed else linted.bad
    new = quarantine.add(folder / QUARANTINE, bad) if bad else []
    listed = findings.as_json()
    verdict = "errors" if listed["counts"]["error"] else "clean"
    report = {"version": VERSION, "source": linted.source, "compared_with": others, "verdict": verdict}
    report |= {**linted.statistics, **listed}
    report["quarantine"] = {"undecodable": len(linted.bad), "stale": 0 if forget else len(stale)}
    shown = thumbnails.shown(findings, linted.digests, [job.tar for job in linted.jobs])
    _write(folder / PAGE, page.page(report, shown))
    _write(folder / JSON, json.dumps(report, indent=1) + "\n")
    return Linted(report, folder, looked_at.home, looked_at.by_image, len(new), len(stale) if forget else 0)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}). Name a folder with --out FOLDER") from None


def _examine(jobs: list[Job], workers: int, meter: ProgressBar) -> None:
    if not jobs:
        return
    total, unit = sum(job.size for job in jobs), "images" if jobs[0].by_image else "MB"
    with meter(total, 0, unit, "linting") as update, closing(run(work, jobs, min(workers, len(jobs)))) as progress:
        for num_done in progress:
            update(num_done)


def _merge(looked_at: Target, jobs: list[Job]) -> tuple[Findings, Report, list[Entry], set[str], Digests]:
    """Findings, statistics, the images that cannot be decoded, the shards that nothing can be said of, the digests."""
    findings = Findings()
    for name, path in looked_at.missing:
        findings.add("missing_shard", name, "", f"{path} does not exist")
    for name in looked_at.damaged:
        findings.add("index", "", "", f"{name} is not the file that was indexed: its SHA-256 differs")
    bad: list[Entry] = []
    unknown = {name for name, _ in looked_at.missing}
    totals = {"num_images": 0, "num_decodable": 0}
    of_size = sizes.no_sizes()
    counts: dict[str, dict[Any, int]] = {"formats": {}, "modes": {}, "labels": {}}
    form = None
    for job in jobs:
        record = json.loads(job.record.with_suffix(".json").read_text())
        findings.extend([Finding(*finding) for finding in record["findings"]], record["counts"])
        bad += [_entry(job.name, *line) for line in record["quarantine"]]
        unknown |= set() if record["is_whole"] else {job.name}
        totals = {name: total + record[name] for name, total in totals.items()}
        sizes.merge(of_size, record["sizes"])
        for name, count in counts.items():
            for value, number in record[name]:
                count[value] = count.get(value, 0) + number
        form = form or record["form"]
        if record["form"] and record["form"] != form:
            findings.add("mixed", job.name, "", f"holds {record['form']} images, the shards before it do not")
    if not totals["num_images"]:
        findings.add("no_samples", "", "", "there is no sample with image and label")
    digests = Digests([job.name for job in jobs], [job.record for job in jobs], looked_at.classes)
    digests.tell(findings)
    statistics = {
        "num_shards": len(jobs) + len(looked_at.missing),
        **totals,
        "formats": dict(sorted(counts["formats"].items())),
        "modes": dict(sorted(counts["modes"].items())),
        "sizes": sizes.as_json(of_size),
        "classes": balance(counts["labels"], looked_at.classes, findings),
    }
    return findings, statistics, bad, unknown, digests


def _entry(shard: str, key: str, reason: str, digest: str) -> Entry:
    """As it is read back: on one line."""
    return Entry(shard, key, " ".join(reason.split()), digest)


def _stale(known: list[Entry], bad: list[Entry], settled: set[str]) -> list[Entry]:
    """Entries of `settled` shards whose image was looked at and is fine, or is no longer there.

    What was not looked at is not fine: other tars may share the quarantine of those that were. A packed set is looked
    at as a whole, so a shard that its manifest lacks is gone.
    """
    still = {entry[:2] for entry in bad}
    return [entry for entry in known if entry[:2] not in still and entry.shard in settled]


def _forget(path: Path, stale: set[Entry]) -> None:
    """Remove entries; those that a run adds meanwhile wait for the lock."""
    with locked(path):
        kept = [entry for entry in quarantine.read(path) if entry not in stale]
        replace(path, quarantine.as_text([Entry(*Entry._fields), *kept]) if kept else b"", AGAIN)


def _write(path: Path, text: str) -> None:
    """The whole file or, stopped at any time, none of it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
