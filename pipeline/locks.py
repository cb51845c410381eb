"""Exclusive locks among processes, by open file (flock): the end of a process, however it ends, drops its locks."""

import fcntl
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UserError

TRIES = 100  # some network file systems give a file another number each time, and it never seems to be the same


def lock(file: IO, wait: bool = True) -> bool:
    """Lock an open file until it is closed. False if another holds it and `wait` is false.

    On a file system without locks nothing is locked, and the answer is True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOSYS, ENOLCK and others, as Lustre, FUSE and NFS say it
        pass
    return True


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """The file, made if it is not there, locked, and still the one of this name: another process may have replaced it
    while this one waited."""
    for tries_left in reversed(range(TRIES)):
        with open(path, "a+b") as file:
            lock(file)
            if not tries_left or (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
                yield file
                return


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Hold `folder` against any other job, on whatever machine. UserError if one holds it.

    On a file system without locks a file that only one can create, `.job`, stands for the lock. Unlike a lock it
    outlives a process that is killed: on the same machine that is seen, and taken over; else a person must say so.
    """
    refusal = f"another job trains in {folder} now. Wait for it, stop it, or give another run=..."
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError:
            pass  # no locks here
        else:
            yield
            return
    mine, sign = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}", folder / ".job"
    try:
        _create(sign, mine)
    except FileExistsError:
        held = sign.read_text()
        host, pid, started, *_ = [*held.split(), "", "", ""]
        now = _started(int(pid)) if pid.isdecimal() else "?"
        is_dead = now == "" or (bool(started) and now not in (started, "?"))  # containers reuse numbers, not ticks
        if host != socket.gethostname() or not is_dead or not _take_over(sign, held, mine):
            raise UserError(
                f"{refusal} (It is process {pid or '?'} on {host or '?'}; this file system has no locks to ask. If it "
                f"is dead: rm {shlex.quote(str(sign))})"
            ) from None
    try:
        yield
    finally:
        sign.unlink(missing_ok=True)


def _take_over(sign: Path, held: str, mine: str) -> bool:
    """Put our sign in place of a dead one that says `held`; False if another job was faster."""
    aside = sign.with_name(f"{sign.name}-{os.getpid()}")
    try:
        os.rename(sign, aside)
        if aside.read_text() != held:  # the living one of a job that took it over meanwhile
            os.rename(aside, sign)
            return False
        aside.unlink()
        _create(sign, mine)
    except (FileNotFoundError, FileExistsError):
        return False
    return True


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _create(path: Path, text: str) -> None:
    with open(path, "x") as file:
        file.write(text)
