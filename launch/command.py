"""What every command line shares: a user's mistake ends in one message and exit code 2, Ctrl-C in exit code 130."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import EXIT_CODE, UserError

FIRST_PROCESS_SPEAKS_S = 5.0


def is_told(error: Exception) -> bool:
    """Whether the text of `error` is all that a person needs: a mistake, or a file that is not as it must be."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None)


def run_command(main: Callable[[], None]) -> None:
    """Run `main`. Under torchrun the first process of a machine prints the mistake that all make. The others give it
    time, since torchrun ends all with the first that fails; one that lives on made a mistake of its own, and prints it.
    """
    try:
        main()
        if "RANK" in os.environ:
            _leave(0)
    except (UserError, OSError) as mistake:
        if not is_told(mistake):
            raise
        error = str(mistake)
        if (rank := os.environ.get("LOCAL_RANK", "0")) != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(FIRST_PROCESS_SPEAKS_S)
            error = f"{error} (process {rank} of this machine)"
        print(f"error: {error}", file=sys.stderr, flush=True)
        if "RANK" in os.environ:
            _leave_for_torchrun(error)
            _leave(EXIT_CODE)
        sys.exit(EXIT_CODE)
    except ModuleNotFoundError as missing:
        _tell_missing(missing)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)


def _tell_missing(missing: ModuleNotFoundError) -> None:
    """Say which package to install. A module of our own that is missing is a bug: raised again."""
    if (missing.name or "").partition(".")[0] in ("pipeline", "models", "launch"):
        raise missing
    print(f"error: {missing}: {sys.executable} lacks it. Run make install, then .venv/bin/python", file=sys.stderr)


def _leave(code: int) -> None:
    """End at once. Threads of a gloo group now and then abort a process that ends slowly ("terminate called without an
    active exception", in one of 25 runs under load), and torchrun would call a job failed that was done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_for_torchrun(error: str) -> None:
    """Put the message where launch.torchrun finds it, if other ranks say much when this one is gone."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": error, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": message}))


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, by number."""


def run_pool(module: str, work: Callable[[Any], int], interrupted_says: str) -> int:
    """The exit code of `work(module)`, which keeps a pool of processes busy. A mistake is told in one message; SIGINT
    and SIGTERM end the pool, once, and say what the same command would do."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        loaded = importlib.import_module(module)
        for number in before:  # not sooner: NumPy's import makes an ImportError of an interrupt
            signal.signal(number, _interrupt)
        return work(loaded)
    except (UserError, OSError) as error:
        if not is_told(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    except ModuleNotFoundError as missing:
        _tell_missing(missing)
        return EXIT_CODE
    except Interrupted as interrupted:
        print(f"interrupted: {interrupted_says}", file=sys.stderr)
        return 128 + int(interrupted.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: Any) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)  # the workers are stopping already
    raise Interrupted(number)
