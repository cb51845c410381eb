"""Files that are whole or not there, checksums, and what to tell a person when a disk is full.

In: a path and what is to be in it. Out: the file, or a UserError with path, bytes needed, bytes free, next action.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.locks import locked

FULL = errno.ENOSPC, errno.EDQUOT
FEW = 16  # files: more than a checkpoint has, which may be removed by now
GO_ON = "Free that much, then start the same command again: it goes on from the last checkpoint"
AGAIN = "Free that much, then run the same command again"
PACK_ON = "Free that much, then run the same command again; it goes on where it stopped"


def is_full(error: OSError) -> bool:
    """Whether disk, quota or inodes are used up. Of NumPy's own errors, which have no number, it goes by the text."""
    return error.errno in FULL or (error.errno is None and " requested and " in str(error))


def cannot_write(path: Path, error: OSError, needed: int, action: str) -> UserError:
    """The message for `path`, which takes `needed` bytes (0: nobody knows)."""
    home = next(place for place in (path, *path.absolute().parents) if place.exists())
    stats = os.statvfs(home)
    free = stats.f_bavail * stats.f_frsize
    reason = error.strerror or str(error)
    if error.errno == errno.EDQUOT:
        reason = "your disk quota is used up"
    elif is_full(error) and free >= needed and stats.f_files and stats.f_favail < FEW:
        reason = f"its file system has {stats.f_favail} inodes left, so remove files, however small"
    elif is_full(error):
        reason = "the disk is full"
    takes = f"it takes {needed:,} bytes, {free:,} are free" if needed else f"{free:,} bytes are free"
    return UserError(f"{path} cannot be written: {reason} ({takes}). {action}")


@contextmanager
def room(path: Path, needed: int, action: str) -> Iterator[None]:
    """Around what writes `path`. Raises UserError when disk, quota or inodes are used up; other errors pass."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise cannot_write(path, error, needed, action) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The file to write in place of `path`, which it becomes at the end. No half of it stays after an error. Of several
    processes that write it at once, one waits for the other; what a killed one left is written over."""
    temporary = path.with_name(f"{path.name}.tmp")
    with locked(temporary):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace(path: Path, content: bytes, action: str) -> None:
    """Write a file whole, or leave the one that is there. Raises UserError on a full disk."""
    with room(path, len(content), action), whole(path) as temporary:
        temporary.write_bytes(content)


def write_synced(path: Path, text: str) -> None:
    """A file that is on the disk when this returns: a machine that loses power would otherwise leave an empty one."""
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def synced_sha256(path: Path) -> str:
    """The SHA-256 of a file that is on the disk when this returns."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return sha256_of(file)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: BufferedIOBase) -> str:
    """Of what an open file holds from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(state: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of contiguous tensors on the host. Raises OSError with its number, as other writing does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(state, path, metadata)
    except SafetensorError as error:  # of the system's errors it keeps the number alone, in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
