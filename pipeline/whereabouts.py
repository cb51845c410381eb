"""Where this rank is, for its launcher: step and point, in a file beside the one that torchrun gives it for errors.

A rank that hangs in a collective or is stopped cannot say so itself. launch.watch reads the files of all ranks of its
machine. A note costs a system call, some 10 us.
"""

import contextlib
import faulthandler
import json
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

# The points that a rank comes to, in the order of a step, by its number.
POINTS = (
    "the start",
    "the data of step {}",
    "the computation of step {}",
    "the evaluation after step {}",
    "the checkpoint of step {}",
    "the end, after step {}",
)
START, DATA, COMPUTE, EVALUATE, SAVE, END = range(len(POINTS))
SIZE = 4096  # bytes of a note, the path of a run folder among them


class Position(NamedTuple):
    step: int
    point: int  # an index into POINTS
    at_s: float  # CLOCK_MONOTONIC, the same for all processes of a machine
    stall_s: float  # without a new position until the job ends; 0: it does not
    run: str


class Whereabouts:
    """Notes of one rank. Without torchrun there is no one to read them, and nothing is written.

    On SIGUSR2 Python's stacks of all threads are written beside them, even while the rank hangs in C.
    """

    def __init__(self, run: Path, stall_s: float):
        self.run, self.stall_s, self._file = str(run.absolute()), stall_s, -1
        if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            self._file = os.open(position_file(error_file), os.O_WRONLY | os.O_CREAT, 0o644)
            self._stacks = open(stacks_file(error_file), "w")  # noqa: SIM115  (as long as the process lives)
            faulthandler.register(signal.SIGUSR2, self._stacks)

    def note(self, point: int, step: int) -> None:
        """This rank has come to `point` of `step` (counted from 1), or has moved on within it."""
        if self._file >= 0:
            position = Position(step, point, time.monotonic(), self.stall_s, self.run)
            with contextlib.suppress(OSError):  # a full disk is no reason to end
                os.pwrite(self._file, json.dumps(position).encode().ljust(SIZE), 0)


def position_file(error_file: str) -> Path:
    return Path(error_file).with_name("position.json")


def stacks_file(error_file: str) -> Path:
    return Path(error_file).with_name("stacks.txt")


def read(error_file: str) -> Position | None:
    """None if the rank has not got that far."""
    try:
        return Position(*json.loads(position_file(error_file).read_text()))
    except (OSError, ValueError, TypeError):
        return None
