"""Exclusive locks among processes, by open file (flock): the end of a process, however it ends, drops its locks."""

import fcntl
from typing import IO


def lock(file: IO, wait: bool = True) -> bool:
    """Lock an open file until it is closed. False if another holds it and `wait` is false.

    On a file system without locks nothing is locked, and the answer is True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
