"""Full disks: writing a file whole or not at all, and what to tell a person when there is no room.

In: a path and the OSError that writing it ended in. Out: a UserError with path, bytes needed, bytes free, next action.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

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
    facts = os.statvfs(home)
    free = facts.f_bavail * facts.f_frsize
    reason = error.strerror or str(error)
    if error.errno == errno.EDQUOT:
        reason = "your disk quota is used up"
    elif is_full(error) and free >= needed and facts.f_files and facts.f_favail < FEW:
        reason = f"its file system has {facts.f_favail} inodes left, so remove files, however small"
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
    """The file to write in place of `path`, which it becomes at the end. No half of it stays after an error."""
    temporary = path.with_name(f"{path.name}.tmp")
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
