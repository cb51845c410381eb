"""How one rank of a job ended, and its words: the rank leaves them in torchrun's error file, its launcher reads them.

launch.command calls `leave` in the rank, launch.agent calls `read` when the rank has gone.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import whole


@dataclass(frozen=True)
class Failure:
    rank: int
    host: str
    exit_code: int  # 128 + N after signal N
    words: str  # what its exception said
    trace: str = ""
    at: float = 0.0  # seconds since 1970; 0 if it left no words
    lost_peer: bool = False  # it failed because another one had ended
    told: bool = False  # it has said its words on the terminal
    final: bool = True  # its machine will not start it again
    stalled: bool = False  # it did not fail: no rank went on, see launch.watch


def leave(error: Exception, mistake: str | None) -> None:
    """Say what ended this rank and leave it for the launcher. A user's `mistake`, which all ranks may well make, is
    said by the first process of each machine alone."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    words = mistake or "".join(traceback.format_exception_only(error)).strip()
    lost_peer = mistake is None and _lost_peer(error)
    told = mistake is None or file is None or os.environ.get("LOCAL_RANK", "0") == "0"
    if lost_peer:
        print(f"rank {os.environ['RANK']} lost another rank: {words}", file=sys.stderr, flush=True)
    elif mistake is None:
        sys.excepthook(type(error), error, error.__traceback__)
    elif told:
        print(f"error: {words}", file=sys.stderr, flush=True)
    if file:
        trace = words if mistake else "".join(traceback.format_exception(error)).strip()
        extra: dict[str, Any] = {"timestamp": str(int(time.time())), "py_callstack": trace}  # torch reads these two
        extra |= {"at": time.time(), "lost_peer": lost_peer, "told": told}
        _write(Path(file), json.dumps({"message": {"message": words, "extraInfo": extra}}))


def _write(file: Path, text: str) -> None:
    """Whole or not at all: torch's agent ends in a traceback of its own on half a file, which a rank leaves that is
    killed while it writes. On a full disk there is none; the words were said on the terminal."""
    with suppress(OSError), whole(file) as half:
        half.write_text(text)


def read(file: Path, code: int, rank: int, final: bool) -> Failure:
    """Of a rank that ended with `code` (-N: by signal N) and may have left its words in `file`."""
    words, extra = f"exit code {code}; its own words are above", {}
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        words = f"killed by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
    try:
        message = json.loads(file.read_text())["message"]
        words, extra = message["message"], dict(message["extraInfo"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # it had no time to leave any
    return Failure(
        rank=rank,
        host=socket.gethostname(),
        exit_code=code if code > 0 else 128 - code,
        words=words,
        trace=extra.get("py_callstack", ""),
        at=extra.get("at", 0.0),
        lost_peer=extra.get("lost_peer", False),
        told=extra.get("told", False),
        final=final,
    )


def cause_first(failure: Failure) -> tuple:
    """Sort key: a rank that only lost another one, or that a library aborted, is seldom the cause."""
    return failure.lost_peer, failure.exit_code == 128 + signal.SIGABRT, failure.at


def _lost_peer(error: Exception) -> bool:
    """Whether a collective failed, most likely because another rank had ended."""
    torch_says = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return torch_says or (isinstance(error, RuntimeError) and "gloo/" in str(error))
