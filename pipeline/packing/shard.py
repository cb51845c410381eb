"""One shard, made by one worker: read and check its images, write the tar, leave a record of its rows.

In: a job, which says everything that decides the bytes. Out: the tar and its record (JSON), both renamed into place
only when whole, so a killed run leaves no half of either and `finished` knows what is there.
"""

import io
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import hints
from pipeline.data.layout import WEBDATASET, Layout
from pipeline.data.manifest import Shard
from pipeline.data.storage.remote import download
from pipeline.errors import UserError
from pipeline.files import PACK_ON, is_full, whole
from pipeline.packing.photo import Rejected, add_pixels, no_pixels, prepare
from pipeline.packing.scan import scan_shard
from pipeline.packing.sets import Photo
from pipeline.packing.tars import unpack
from pipeline.workers import tick

TAR_BYTES = 2048  # beside an image: its header and padding, and its label's
MAX_BYTES = 1 << 28  # a larger file is no photo; do not read a film into memory to find that out


@dataclass(frozen=True)
class PackJob:
    """Write `members` (key, label, source) to `tar`; `short_side`, `raw_px` and `quality` as in `photo.prepare`."""

    root: Path
    tar: Path
    record: Path
    members: list[tuple[str, int, Photo]]
    statistics: bool
    short_side: int | None
    quality: int
    raw_px: int | None = None

    def __len__(self) -> int:
        return len(self.members)

    @property
    def room(self) -> int:
        """About the bytes that the tar takes, at most."""
        images = (self.raw_px**2 * 3 if self.raw_px else max(0, source.size) for _, _, source in self.members)
        return sum(images) + TAR_BYTES * len(self.members)

    def make(self) -> dict[str, Any]:
        rejected: list[tuple[str, str]] = []
        converted: Counter[str] = Counter()
        sums = no_pixels() if self.statistics else None
        with whole(self.tar) as temporary, open(temporary, "wb") as stream, _writer(stream) as writer:
            for key, label, source in self.members:
                tick(1)
                try:
                    content = _read(self.root, source)
                    photo = prepare(content, self.short_side, self.quality, self.raw_px)
                except Rejected as reason:
                    rejected.append((source.name, str(reason)))
                    continue
                writer.write({"__key__": key, photo.extension: photo.content, "cls": label})
                converted.update([photo.because] if photo.because else [])
                if sums:
                    add_pixels(sums, photo.pixels)
        return _record(self.tar, self.tar.name, rejected, sums) | {"converted": dict(converted)}


@dataclass(frozen=True)
class ScanJob:
    """Index an existing `tar`, which the manifest will call `name`. With a `url` it is fetched first, and not kept."""

    tar: Path
    name: str
    record: Path
    url: str | None = None
    listed_size: int = -1  # in bytes, of what is behind the URL; -1 if that was not told
    layout: Layout = WEBDATASET
    names: dict[str, int] | None = None
    compressed: Path | None = None  # what to unpack into `tar` first

    def __len__(self) -> int:
        return 1

    @property
    def room(self) -> int:
        """Bytes that what is fetched or unpacked takes, at least."""
        return max(0, self.listed_size) if self.url or self.compressed else 0

    def make(self) -> dict[str, Any]:
        tick(0)
        if self.url:
            download(self.url, self.tar, size=self.room, action=PACK_ON)
        if self.compressed:
            unpack(self.compressed, self.tar)
        try:
            record = _record(self.tar, self.name, [], None, self.layout, self.names)
        except UserError as error:
            all_of_them = (
                ""
                if self.url or self.compressed or self.layout != WEBDATASET
                else f" (all that is wrong: {hints.command('launch.lint', self.tar)})"
            )
            called = self.url or str(self.compressed or self.tar)
            raise UserError(str(error).replace(str(self.tar), called) + all_of_them) from None
        finally:
            if self.url:
                self.tar.unlink()
        tick(1)
        return record


def _record(
    tar: Path,
    name: str,
    rejected: list,
    sums: dict | None,
    layout: Layout = WEBDATASET,
    names: dict[str, int] | None = None,
) -> dict[str, Any]:
    shard, columns = scan_shard(tar, name, layout=layout, names=names)
    columns["key"] = [key.decode() for key in columns["key"]]
    return {"shard": vars(shard), "columns": columns, "rejected": rejected, "sums": sums}


def finished(job: PackJob | ScanJob) -> bool:
    """Whether the job's record is there and its tar has not changed since."""
    try:
        record, size = job.record.stat(), json.loads(job.record.read_text())["shard"]["size"]
        if isinstance(job, ScanJob) and job.url:
            return job.listed_size == size
        tar = job.tar.stat()
    except (OSError, ValueError, KeyError):
        return False
    return tar.st_size == size and tar.st_mtime_ns <= record.st_mtime_ns


class Record(NamedTuple):
    """What `make` found: the shard and its columns; rejected (name, reason); colour sums; how many images were
    converted to PNG, by the reason."""

    shard: Shard
    columns: dict[str, list]
    rejected: list[tuple[str, str]]
    sums: dict[str, Any] | None
    converted: dict[str, int]


def read_record(job: PackJob | ScanJob) -> Record:
    record = json.loads(job.record.read_text())
    record["columns"]["key"] = [key.encode() for key in record["columns"]["key"]]
    shard = Shard(**record["shard"])
    return Record(shard, record["columns"], record["rejected"], record["sums"], record.get("converted", {}))


def _writer(stream: io.BufferedIOBase):
    """A ShardWriter that writes one shard to `stream`, with a fixed owner and time, so that bytes repeat."""
    import webdataset

    return webdataset.ShardWriter(
        "shard-%06d.tar",  # not used: `opener` has the file
        maxcount=sys.maxsize,
        maxsize=sys.maxsize,
        verbose=0,
        opener=lambda _: stream,
        mtime=0,
        user="",
        group="",
    )


def _read(root: Path, source: Photo) -> bytes:
    """The bytes of a source. Raises Rejected, or UserError if it is not what was listed."""
    if source.size < 0:
        raise Rejected("a link that leads nowhere")
    if source.size == 0:
        raise Rejected("an empty file")
    if source.size > MAX_BYTES:
        raise Rejected(f"larger than {MAX_BYTES >> 20} MiB")
    try:
        with open(root / source.file, "rb") as file:
            file.seek(source.offset)
            encoded = file.read(source.size)
    except PermissionError:
        raise Rejected("no permission to read it") from None
    except FileNotFoundError:
        encoded = b""
    if len(encoded) != source.size:
        raise UserError(f"{root / source.file} changed while it was packed. Run the same command again")
    return encoded


def work(job: PackJob | ScanJob) -> None:
    """Do the job and leave its record. Raises UserError for what the user can mend, OSError for a full disk."""
    try:
        text = json.dumps(job.make())
        with whole(job.record) as temporary:
            temporary.write_text(text)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"{error}. Mend that and run the same command again; it goes on where it stopped") from None
