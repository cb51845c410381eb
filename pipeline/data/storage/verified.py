"""Which cached shards this job has found whole: each is compared with its SHA-256 before the job first uses it.

In: an open shard. Out: whether its bytes are those of the manifest. A disk can flip bits while size and times stay, so
only the bytes tell. The first process of a job and a machine that opens the shard reads them, mostly ahead of the step
that needs it; others wait. Its verdict is a stamp, CACHE/.verified/<name of the shard>, which counts for processes that
started before it was written. An empty one, of a process that was killed meanwhile, counts for nobody.

A shard of 115 MB takes 0.3 s of a core (0.45 s where two cores have eight things to do), ImageNet's 147 GB 6 minutes.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

from pipeline.files import sha256_of

STARTED_NS = time.time_ns()  # about when this process did; the ranks of a job meet before any of them reads a shard


def stamp_of(shard: Path) -> Path:
    """Where the verdict on a cached shard stands."""
    return shard.parent / ".verified" / shard.name


def mark(shard: Path) -> None:
    """Its bytes have just been compared."""
    stamp_of(shard).parent.mkdir(exist_ok=True)
    stamp_of(shard).write_text("whole")


def is_verified(file: BinaryIO, shard: Path, sha256: str) -> bool:
    """Whether the bytes of the open `file`, called `shard`, are right. It is left at its beginning."""
    if _is_marked(shard):
        return True
    stamp_of(shard).parent.mkdir(exist_ok=True)
    with open(stamp_of(shard), "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            if _is_marked(shard):  # by the process that was waited for
                return True
            right = is_right(file, sha256)
            if right:
                mark(shard)
            return right
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)


def is_right(file: BinaryIO, sha256: str) -> bool:
    """Whether an open file has this SHA-256. It is left at its beginning."""
    with open(file.fileno(), "rb", closefd=False) as content:
        content.seek(0)
        seen = sha256_of(content)
    file.seek(0)
    return seen == sha256


def _is_marked(shard: Path) -> bool:
    try:
        stat = os.stat(stamp_of(shard))
    except FileNotFoundError:
        return False
    return stat.st_size > 0 and stat.st_mtime_ns >= STARTED_NS
