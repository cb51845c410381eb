"""Packing: photos to WebDataset shards with an index, or an index alone over shards that exist.

In: a SOURCE of any kind that `sources.find` recognises. Out: OUT/<set>/ with shards, manifest.json and index/, and
OUT/pack.json and OUT/rejected.tsv. Each shard is a fixed slice of a seeded order, so its bytes do not depend on the
number of workers.

    python -m launch.pack photos data/photos --holdout 0.1
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data import index, plausible
from pipeline.data.layout import numbers
from pipeline.errors import UserError
from pipeline.files import PACK_ON, cannot_write, is_full, room
from pipeline.packing import indexing, sets, sources, staging
from pipeline.packing.labels import check_labels
from pipeline.packing.listing import CLASS_FOLDERS, CLASS_TARS, SHARDS, SPLIT_FOLDERS, Origin
from pipeline.packing.options import QUALITY, SHARD_IMAGES, Options
from pipeline.packing.photo import rgb_statistics
from pipeline.packing.shard import PackJob, ScanJob, finished, read_record, work
from pipeline.wording import counted
from pipeline.workers import ProgressBar, run

VERSION = 3
INDEX_BYTES = 128  # of an image, about

Job = PackJob | ScanJob


@contextmanager
def silent(total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A meter that shows nothing."""
    yield lambda done: None


def pack(
    source: str,
    out: Path,
    options: Options,
    workers: int,
    say: Callable[[str], None] = print,
    meter: ProgressBar = silent,
) -> dict[str, Any]:
    """Pack `source` to `out` and return what pack.json holds, and `doubts` that a person should read of.

    `meter(total, done, unit)` yields a function of done.

    Raises UserError for anything that the user can mend; KeyboardInterrupt leaves `OUT.part`, from which the same call
    goes on.
    """
    origin = sources.find(source, options.split)
    files = ", ".join(f"{name} {counted(len(files), 'file')}" for name, files in origin.files.items())
    say(f"{source}: {origin.kind} ({files})")
    for note in origin.notes:
        say(note)
    _check_options(origin, options)
    target = Path(os.path.realpath(out))
    if origin.kind in (CLASS_FOLDERS, SPLIT_FOLDERS) and target.is_relative_to(origin.root):
        raise UserError(f"{out} lies inside {source}, where it would be taken for images. Give an OUT outside of it")
    classes = sets.read_classes(options.classes) if options.classes else None
    request = {
        "version": VERSION,
        "kind": origin.kind,
        "options": _recorded(options, classes),
        "fingerprint": origin.fingerprint,
    }
    packed = staging.already_packed(target, request)
    if packed:
        for name in packed["sets"]:
            index.load(out / name)  # which tells if a shard has changed since
        say(f"already packed: {out}")
        if packed["version"] != VERSION:
            say(f"by an earlier version of this program, whose sets are still read. Remove {out} to pack it anew")
        return packed | {"doubts": _doubts(out, packed)}
    contents = None
    if origin.kind != SHARDS:
        contents = sets.arrange(origin, classes, options.val_labels, options.holdout or 0.0, options.seed)
        classes = contents.classes
    num_files = sum(len(files) for files in origin.files.values())
    with room(staging.place(target), INDEX_BYTES * num_files, PACK_ON), staging.staged(target, request, say) as part:
        jobs = _pack_jobs(origin, contents, options, part) if contents else _scan_jobs(origin, classes, options, part)
        _run(part, [job for of_set in jobs.values() for job in of_set], workers, say, meter)
        summary = request | _finish(part, target, origin, classes, jobs, options)
        staging.publish(part, target, summary)
    return summary | {"doubts": _doubts(out, summary)}


def _doubts(out: Path, packed: dict[str, Any]) -> list[str]:
    loaded = {name: index.load(out / name, verify=False) for name in packed["sets"]}
    return plausible.doubts(loaded.get("train"), *(other for name, other in loaded.items() if name != "train"))


def _check_options(origin: Origin, options: Options) -> None:
    if origin.kind == SHARDS:
        for name in ("holdout", "shard_images", "short_side", "raw", "val_labels"):
            if getattr(options, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} does nothing for shards that exist: they stay as they are. Leave it out")
    elif options.label or options.image:
        raise UserError(f"--label and --image are for WebDataset shards, and this is {origin.kind}. Leave them out")
    if options.holdout and set(origin.files) & {"train", "validation"} != {"train"}:
        raise UserError(
            f"--holdout takes from train for validation, but there is {', '.join(origin.files)}. Leave it out"
        )
    if options.val_labels and (origin.kind in (CLASS_FOLDERS, CLASS_TARS) or "validation" not in origin.files):
        raise UserError("--val-labels is for ImageNet's validation images, and there are none. Leave it out")


def _recorded(options: Options, classes: list[str] | None) -> dict[str, Any]:
    """The options as pack.json keeps them: digests for files, whose paths say nothing about the output."""
    recorded = asdict(options)
    recorded["classes"] = hashlib.sha256(json.dumps(classes).encode()).hexdigest()[:16] if classes else None
    if options.val_labels and options.val_labels.is_file():
        recorded["val_labels"] = hashlib.sha256(options.val_labels.read_bytes()).hexdigest()[:16]
    elif options.val_labels:
        raise UserError(f"--val-labels {options.val_labels} does not exist. Give a file of labels")
    return recorded


def _pack_jobs(origin: Origin, contents: sets.Sets, options: Options, part: Path) -> dict[str, list[Job]]:
    label_of = {name: label for label, name in enumerate(contents.classes)}
    jobs: dict[str, list[Job]] = {}
    for name, members in contents.sources.items():
        (part / name).mkdir(exist_ok=True)
        keyed = [(key, label_of[source.class_name], source) for key, source in sets.keyed(members)]
        keyed.sort(key=lambda row: sets.share(options.seed, row[2].name))  # shuffles, the same way everywhere
        # A small set in at least 8 shards, if each can have 50 images: enough to split among workers and machines.
        per_shard = options.shard_images or min(SHARD_IMAGES, max(50, -(-len(keyed) // 8)))
        jobs[name] = [
            PackJob(
                root=origin.root,
                tar=part / name / f"shard-{number:06d}.tar",
                record=part / staging.RECORDS / f"{name}-{number:06d}.json",
                members=keyed[start : start + per_shard],
                statistics=name == "train",
                short_side=options.short_side,
                quality=options.quality or QUALITY,
                raw_px=options.raw,
            )
            for number, start in enumerate(range(0, len(keyed), per_shard))
        ]
    return jobs


def _scan_jobs(origin: Origin, classes: list[str] | None, options: Options, part: Path) -> dict[str, list[Job]]:
    records = part / staging.RECORDS
    jobs: dict[str, list[Job]] = {}
    for name, files in origin.files.items():
        jobs[name] = []
        (part / name).mkdir(exist_ok=True)
        for number, file in enumerate(files):
            place = origin.root / file.name
            if origin.compressed:  # each sample must be reached directly
                place = part / name / f"shard-{number:06d}.tar"
            elif origin.url:
                place = records / f"{name}-{number:06d}.tar"
            jobs[name].append(
                ScanJob(
                    tar=place,
                    name=place.name if origin.compressed else file.name,
                    record=records / f"{name}-{number:06d}.json",
                    url=f"{origin.url}/{file.name}" if origin.url else None,
                    listed_size=file.size,
                    layout=options.layout,
                    names=numbers(classes),
                    compressed=origin.root / file.name if origin.compressed else None,
                )
            )
    return jobs


def _run(part: Path, jobs: list[Job], workers: int, say: Callable[[str], None], meter: ProgressBar) -> None:
    """Do the jobs that are not done yet, in `workers` processes. Raises UserError on a full disk."""
    todo = [job for job in jobs if not finished(job)]
    if len(todo) < len(jobs):
        say(f"going on: {len(jobs) - len(todo)} of {len(jobs)} shards are there")
    unit = "images" if jobs and isinstance(jobs[0], PackJob) else "shards"
    total, left = sum(map(len, jobs)), sum(map(len, todo))
    if not todo:
        return
    start_s = time.monotonic()
    try:
        with meter(total, total - left, unit) as update, closing(run(work, todo, min(workers, len(todo)))) as progress:
            for num_done in progress:
                update(total - left + num_done)
    except OSError as error:
        if not is_full(error):
            raise
        needed = sum(job.room for job in todo if not finished(job))
        raise cannot_write(part, error, needed, PACK_ON) from error
    wall_s = time.monotonic() - start_s
    pace = f": {left / wall_s:.0f} images/s with {counted(workers, 'process', 'processes')}" if unit == "images" else ""
    say(f"{counted(left, unit.removesuffix('s'))} in {wall_s:.1f} s{pace}")


def _finish(
    part: Path,
    out: Path,
    origin: Origin,
    classes: list[str] | None,
    jobs: dict[str, list[Job]],
    options: Options,
) -> dict[str, Any]:
    """Write rejected.tsv and each set's index from the shards' records; returns the counts for pack.json."""
    records = {name: [read_record(job) for job in of_set] for name, of_set in jobs.items()}
    every = [record for rows in records.values() for record in rows]
    rejected = sorted((file, reason) for record in every for file, reason in record.rejected)
    converted: Counter[str] = sum((Counter(record.converted) for record in every), Counter())
    text = "".join(f"{_one_line(file)}\t{reason}\n" for file, reason in [("path", "reason"), *rejected])
    (part / staging.REJECTED).write_text(text, encoding="utf-8", errors="backslashreplace")
    for name, rows in records.items():
        if not any(record.shard.num_samples for record in rows):
            if not any(record.rejected for record in rows):
                raise UserError(
                    f"the set '{name}' has no image: there is none in {origin.root}. Give files that hold some"
                )
            raise UserError(f"the set '{name}' has no image left. {part / staging.REJECTED} says why. Mend its files")
    shards = {name: [(record.shard, record.columns) for record in rows] for name, rows in records.items()}
    if origin.kind == SHARDS:
        classes = check_labels(origin, shards, classes)
    assert classes is not None
    rgb = rgb_statistics([record.sums for record in records.get("train", []) if record.sums])
    for name, indexed in shards.items():
        shards_root = "."
        if origin.kind == SHARDS and not origin.compressed:
            shards_root = origin.url or os.path.relpath(origin.root, out / name)
        indexing.write(part / name, indexed, classes, shards_root, rgb, options.layout)
    return {
        "sets": {
            name: {"images": sum(shard.num_samples for shard, _ in indexed), "shards": len(indexed)}
            for name, indexed in shards.items()
        },
        "num_classes": len(classes),
        "num_rejected": len(rejected),
        "converted": dict(sorted(converted.items())),
    }


def _one_line(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
