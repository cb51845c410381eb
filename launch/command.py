"""What every command line shares: a mistake ends in one message and exit code 2, signal N in exit code 128 + N.

A command has `main(argv: list[str] | None = None) -> int`, argv being the words behind its name, and ends its file with
`sys.exit(run(main))`.
"""

import argparse
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from launch import failure
from pipeline.errors import EXIT_CODE, UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OURS = ("pipeline", "models", "launch")  # a module of them that is missing is a bug


class Parser(argparse.ArgumentParser):
    """The words of a command. A mistake in them is told in one line, without the usage."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}. See --help")


def run(main: Callable[[], int], *, as_rank: bool = False) -> int:
    """The exit code of `main`, or what its end means: a mistake is told in one message, an interrupt by what it says.

    With `as_rank` the process may be a rank of torchrun's: the first one of a machine tells the mistake that all make;
    one that another makes alone, and the first error of several, are told by launch.torchrun when all have ended. Then
    the process ends here.
    """
    code, under_torchrun = 0, as_rank and "RANK" in os.environ
    if under_torchrun:
        _end_with_launcher()
    try:
        code = main()
        sys.stdout.flush()
    except Stopped as stopped:
        code = 128 + stopped.number
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
        if under_torchrun:
            _die_of(number)
        if isinstance(interrupt, Interrupted) and interrupt.says:
            print(f"interrupted: {interrupt.says}", file=sys.stderr)
        code = 128 + number
    except BrokenPipeError:
        code = _unread()
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None and not under_torchrun:
            raise
        code = 1 if mistake is None else EXIT_CODE
        if under_torchrun:
            failure.leave(error, mistake)
        else:
            print(f"error: {mistake}", file=sys.stderr, flush=True)
    if under_torchrun:
        _leave(code)
    return code


def _mistake(error: Exception) -> str | None:
    """What to tell a person who can mend it; None for a bug, which keeps its traceback."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OURS:
        return f"{error}: {sys.executable} lacks it. Run make install, then .venv/bin/python"
    return None


def _unread() -> int:
    """The exit code when nobody reads what is said any more, as behind `| head`: as if SIGPIPE had ended it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to say goes nowhere
    return 128 + signal.SIGPIPE


def _leave(code: int) -> None:
    """End at once. Threads of a gloo group now and then abort a process that ends slowly ("terminate called without an
    active exception", in one of 25 runs under load), and torchrun would call a job failed that was done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_launcher() -> None:
    """SIGKILL when the launcher is gone, however it went: a rank would train on without it, or wait for the others. The
    kernel sends it, so a rank that hangs in C gets it too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_of(number: int) -> None:
    """As without a handler: the launcher takes exit code 128 + N for a stop that all ranks agreed upon."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class Stopped(Exception):
    """By signal `number`, after all ranks together have written what the same command goes on from."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, by number; `says` what the same command would do."""

    def __init__(self, number: int, says: str = ""):
        super().__init__(number)
        self.number, self.says = number, says


@contextmanager
def told_when_interrupted() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises Interrupted; later ones do nothing. The body may catch it and finish its work:
    it is raised again at the end."""
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        _interrupt(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        if came:
            raise Interrupted(came[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def imported_for_pool(module: str, interrupted_says: str) -> Iterator[Any]:
    """`module`, whose work keeps a pool of processes busy: SIGINT and SIGTERM end the pool, once, by Interrupted."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        loaded = importlib.import_module(module)
        for number in before:  # not sooner: NumPy's import makes an ImportError of an interrupt
            signal.signal(number, lambda number, _: _interrupt(number, interrupted_says))
        yield loaded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, says: str = "") -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)  # the workers are stopping already
    raise Interrupted(number, says)
