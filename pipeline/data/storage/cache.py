"""A bounded folder of verified remote shards on a local disk, shared by all processes and jobs of a machine.

In: URL, size and SHA-256 of a shard. Out: the open file of the whole shard, which nobody evicts while it is open.
Files are named `<sha256>-<size>.tar`, so any set that holds a shard shares it; `.part` behind it while it is fetched.
A shard that was fetched by another job is compared with its SHA-256 before this one uses it (verified.py).
Locks (flock) go with the open file: a mapping of it keeps them, and the end of a process, however it ends, drops them.
    .lock     exclusive: to look at, add to or take from what is in the folder; never during a fetch
    *.tar     shared: in use, not to be evicted
    *.part    exclusive: being fetched; without a lock, left by a process that was killed
"""

import contextlib
import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pipeline.data.storage.remote import KEEP, PATIENT, Failure, Patience, download
from pipeline.data.storage.verified import is_right, is_verified, mark, stamp_of
from pipeline.files import cannot_write, sha256_of

NAME = re.compile(r"[0-9a-f]{64}-(\d+)\.tar(\.part)?")
ATTEMPTS_AHEAD = 3  # then the step that needs the shard tries at length, and tells


def file_name(size: int, sha256: str) -> str:
    """What a shard is called in the folder."""
    return f"{sha256}-{size}.tar"


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int  # in bytes, from the name: of a .part what it will be
    used_ns: int
    is_part: bool


class Cache:
    """At most `max_bytes` of shards in `folder`; those that were not used for longest go first.

    `soon` are the names of files that this process needs soon: they go last, and never for a shard that is fetched
    ahead. Raises UserError, naming the folder, if it cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int, patience: Patience = PATIENT):
        self.folder = folder
        self.max_bytes = max_bytes
        self.patience = patience
        self.soon: frozenset[str] = frozenset()
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)

    def open(self, url: str, size: int, sha256: str, ahead: bool = False) -> BinaryIO | None:
        """The shard's file, fetched if it is not here, and kept here while the file or a mapping of it is open.

        A shard that another process is fetching, or comparing with its checksum, is waited for. One that is damaged
        here is fetched again, and a warning says so. `ahead` is for one that no step needs yet: None, and
        nothing fetched, if there is no room. Otherwise it is fetched even so: what is in use at once may exceed the
        bound. Raises UserError: it cannot be fetched, is not the manifest's, or the folder cannot be written.
        """
        whole = self.folder / file_name(size, sha256)
        part = whole.with_name(f"{whole.name}.part")
        patience = self.patience
        if ahead:
            patience = replace(patience, attempts=min(ATTEMPTS_AHEAD, patience.attempts))
        with self._told(size):
            while True:
                with self._alone():
                    file = _hold(whole, size)
                    lock = None if file else _lock(part, create=True)
                    if lock and not self._make_room(part, size, ahead):
                        part.unlink()
                        lock.close()
                        return None
                if file:
                    if is_verified(file, whole, sha256):
                        return file
                    self._drop(file, whole, url)
                    continue
                if lock is None:
                    _wait(part)
                    continue
                with lock:
                    _fetch(url, part, size, sha256, patience)
                    with self._alone():
                        part.rename(whole)
                        mark(whole)
                        fcntl.flock(lock, fcntl.LOCK_UN)
                        file = _hold(whole, size)
                        if file:
                            return file

    def verify(self, url: str, size: int, sha256: str) -> None:
        """Compare the bytes of a shard that is here anew; a damaged one goes, so that `open` fetches it again. For one
        whose images cannot be decoded."""
        whole = self.folder / file_name(size, sha256)
        with self._told():
            with self._alone():
                file = _hold(whole, size)
            if file and not is_right(file, sha256):
                self._drop(file, whole, url)
            elif file:
                file.close()

    def _drop(self, file: BinaryIO, whole: Path, url: str) -> None:
        """Take a damaged shard away, unless another process has done so. Who has it mapped keeps what he has."""
        with file, self._alone():
            try:
                if not os.path.samestat(whole.stat(), os.fstat(file.fileno())):
                    return
            except FileNotFoundError:
                return
            whole.unlink()
            fcntl.flock(file, fcntl.LOCK_UN)
        print(
            f"warning: {whole} was damaged after it had been fetched: its SHA-256 is no longer the manifest's. "
            f"{url} is fetched again; if this comes often, check the disk of data.cache",
            file=sys.stderr,
            flush=True,
        )

    def names(self) -> frozenset[str]:
        """The names of the whole shards that are here."""
        return frozenset(entry.path.name for entry in self._entries() if not entry.is_part)

    def _make_room(self, part: Path, size: int, ahead: bool) -> bool:
        """Evict, least recently used first, until `size` more fits; nothing if that is not enough for one `ahead`."""
        entries = [entry for entry in self._entries() if entry.path != part]
        excess = sum(entry.size for entry in entries) + size - self.max_bytes
        entries.sort(key=lambda entry: (not entry.is_part, entry.path.name in self.soon, entry.used_ns))
        with contextlib.ExitStack() as locks:
            evicted = []
            for entry in entries:
                if excess <= 0 or (ahead and entry.path.name in self.soon):
                    break
                lock = _lock(entry.path)
                if lock:
                    locks.enter_context(lock)
                    evicted.append(entry)
                    excess -= entry.size
            if ahead and excess > 0:
                return False
            for entry in evicted:
                entry.path.unlink(missing_ok=True)
                stamp_of(entry.path).unlink(missing_ok=True)
        return True

    def _entries(self) -> list[_Entry]:
        entries = []
        for file in os.scandir(self.folder):
            match = NAME.fullmatch(file.name)
            with contextlib.suppress(FileNotFoundError):
                if match:
                    used_ns = file.stat().st_mtime_ns
                    entries.append(_Entry(Path(file.path), int(match[1]), used_ns, bool(match[2])))
        return entries

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough while a forked child has a copy

    @contextlib.contextmanager
    def _told(self, needed: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # no matter of the folder's: Reader tells it
                raise
            raise cannot_write(self.folder, error, needed, KEEP) from error


def _hold(path: Path, size: int) -> BinaryIO | None:
    """Open a whole shard and mark it as in use, now. None if it is not there. Call it alone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != size:  # it was whole when it came; somebody else has cut it
        file.close()
        path.unlink()
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    with contextlib.suppress(PermissionError):  # another user's shard is as good
        os.utime(path)
    return file


def _lock(path: Path, create: bool = False) -> BinaryIO | None:
    """Open a file with an exclusive lock; None if somebody holds it, or it is gone. Call it alone."""
    try:
        file: BinaryIO = path.open("ab" if create else "rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _wait(part: Path) -> None:
    """Until whoever fetches this has done, or has given up."""
    with contextlib.suppress(FileNotFoundError), open(part, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _fetch(url: str, part: Path, size: int, sha256: str, patience: Patience) -> None:
    """Download a shard, compare it with the manifest, write it through. A .part that failed is not left behind."""

    def check() -> None:
        with open(part, "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes != size:
                raise _wrong(f"{num_bytes} bytes, not {size}")
            digest = sha256_of(file)
            if digest != sha256:
                raise _wrong(f"SHA-256 {digest[:12]}..., not {sha256[:12]}...", sure_twice=True)
            os.fsync(file.fileno())

    try:
        download(url, part, patience, check, size)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _wrong(difference: str, sure_twice: bool = False) -> Failure:
    return Failure(
        f"the bytes there are not those of the manifest ({difference})",
        "Copy the shard there again, or if it was changed on purpose, index the set again with launch.pack",
        again=True,
        sure_twice=sure_twice,
    )
