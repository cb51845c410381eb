"""torchrun with a quick and quiet end: python -m launch.torchrun TORCHRUN_OPTIONS -m launch.train CONFIG ...

The same options as torchrun. When a rank fails, the ranks of all machines end within 10 seconds, and its words are the
last on the terminal. The exit code is the job's: 2 for a user's mistake, 128 + N after signal N.
"""

import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_CODE

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousError

    from launch.agent import JobFailed


SCRATCH = "tencrop-torchrun-"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def main() -> int:
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # which torch forgets: a logout would end the job
    signals = [number for number in SIGNALS if not (under_nohup and number == signal.SIGHUP)]
    _on(signals, lambda number, _: os._exit(128 + number))  # nothing is begun
    # Else the launcher itself dies of SIGUSR1. Where torch has this option.
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(number.name for number in signals))
    # Else the last agents fill the terminal with C++ frames when the machine that hosts the store has gone. Only here.
    unset = "TORCH_CPP_LOG_LEVEL" not in os.environ
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api
    from torch.distributed.run import parse_args, run

    from launch.agent import Agent, JobFailed

    if unset:
        del os.environ["TORCH_CPP_LOG_LEVEL"]
    # They say which rank they stopped, and its exit code, after the words of that rank, which are to be the last.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
    api.LocalElasticAgent = Agent  # type: ignore[misc]  # torch offers no other way
    args = parse_args(sys.argv[1:])

    def stop(number: int, _: Any) -> None:  # as torch does it from when the ranks are started
        raise SignalException("stopped before the ranks were started", signal.Signals(number))

    _on(signals, stop)
    try:
        with _scratch() as folder:
            args.log_dir = args.log_dir or folder  # torch makes two of its own, and leaves them
            run(args)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except JobFailed as failed:
        if words := _last_words(failed):
            print(words, file=sys.stderr, flush=True)
        return failed.exit_code
    except RendezvousError as error:
        print(_no_rendezvous(error, args.rdzv_endpoint), file=sys.stderr, flush=True)
        return 1
    except ChildFailedError:
        return 1
    return 0


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for torch's files. One of a launcher that was killed goes at the next start: nobody holds its lock."""
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/.lock"):
        with suppress(OSError), open(left, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder, open(Path(folder, ".new"), "w") as held:
        with suppress(OSError):  # a file system without locks: then none is taken for left
            fcntl.flock(held, fcntl.LOCK_EX)
        Path(folder, ".new").rename(Path(folder, ".lock"))  # never there without its lock
        yield folder


def _on(signals: list[signal.Signals], handler: Callable[[int, Any], Any]) -> None:
    for number in signals:
        signal.signal(number, handler)


def _last_words(failed: "JobFailed") -> str:
    """What the terminal ends with; nothing if a mistake was told already and nobody spoke after it."""
    first = failed.failure
    if first.stalled:
        return f"\nerror: {first.words}"
    if first.exit_code != EXIT_CODE:
        trace = f"\n{first.trace}\n" if first.lost_peer else ""  # others have printed theirs
        where = "" if failed.here else f" on {first.host}"
        return f"{trace}\nerror: rank {first.rank}{where} failed first: {first.words}"
    if failed.said:
        return ""
    return f"\nerror: {first.words}" + ("" if failed.here else f" (rank {first.rank} on {first.host})")


def _no_rendezvous(error: "RendezvousError", endpoint: str) -> str:
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError

    if isinstance(error, RendezvousTimeoutError):
        return f"\nerror: not all machines came to the rendezvous at {endpoint}. Start the same command on all of them"
    if isinstance(error, RendezvousConnectionError):
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        return (
            f"\nerror: no connection to the rendezvous at {endpoint} ({reason}). If the job was running, it has ended "
            f"on the machine that hosts it: read the words there. Else check MASTER_ADDR and that MASTER_PORT is open"
        )
    return f"\nerror: the rendezvous at {endpoint} failed: {type(error).__name__}: {error}"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch takes 1 to 2 s to be unloaded
