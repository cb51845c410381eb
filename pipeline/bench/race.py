"""The driver: contestants as living processes that take turns, one at a time, in rotated order.

In: a command line for each contestant. Out: per contestant its versions and turns, or why it failed. Between its turns
a contestant is stopped (SIGSTOP), so that what it would prepare ahead takes no time from the others. An interrupt ends
the race, and the rounds that all went through are kept.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_LIMIT_S = 600.0
TURN_LIMIT_S = 600.0
NO_ROUND = "no whole round before the cut"


@dataclass
class Result:
    """Of one contestant: versions and its turns, round by round, or the reason of its failure."""

    versions: str = ""
    failed: str = ""
    images: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.images) and not self.failed

    @property
    def rates(self) -> list[float]:
        return [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]


class Failed(Exception):
    """Of a contestant; the text is the reason."""


class Process:
    """A contestant's process. It begins with its first batches and is stopped whenever it has answered."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd: Path, log: Path):
        self.log = log
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def hear(self, limit_s: float) -> dict[str, Any]:
        """Its next answer. Raises Failed if that is a failure, or does not come."""
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], limit_s)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            said = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()] or [""]
            raise Failed(f"ended: {said[-1]}" if ready else f"no answer in {limit_s:.0f} s")
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        self._signal(signal.SIGSTOP)
        return answer

    def turn(self, num_images: int) -> tuple[int, float]:
        """(images, seconds) of a turn."""
        assert self.process.stdin
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"go {num_images}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed("ended between its turns") from None
        answer = self.hear(TURN_LIMIT_S)
        return answer["images"], answer["seconds"]

    def end(self) -> None:
        """Ends it, and the workers that it started."""
        self._signal(signal.SIGKILL)
        self.process.communicate()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return


def race(
    begin: dict[str, Callable[[], Process]],
    num_rounds: int,
    num_images: int,
    min_turn_s: float,
    say: Callable[[str], None],
) -> tuple[dict[str, Result], int]:
    """Rounds in which each contestant takes a turn of at least `num_images`, and about `min_turn_s`. With the results,
    how many whole rounds there were: fewer than `num_rounds` after a KeyboardInterrupt, which is caught here.

    A turn that is not counted comes first, and says how many images take `min_turn_s`. One that fails is left out from
    there on.
    """
    results = {name: Result() for name in begin}
    living: dict[str, Process] = {}
    share: dict[str, int] = {}
    rounds: list[dict[str, tuple[int, float]]] = []
    try:
        try:
            for name, begin_one in begin.items():
                say(f"starting {name}")
                try:
                    living[name] = begin_one()
                    results[name].versions = living[name].hear(START_LIMIT_S)["versions"]
                    images, seconds = living[name].turn(num_images)
                    share[name] = max(num_images, int(min_turn_s * images / seconds))
                except Failed as reason:
                    _drop(name, str(reason), results, living)
            for number in range(num_rounds):
                start_s = time.monotonic()
                rounds.append(_round(number, share, results, living))
                say(f"round {number + 1} of {num_rounds}: {time.monotonic() - start_s:.0f} s")
        finally:
            _end(living)
    except KeyboardInterrupt:
        _end(living)  # those that it kept from being ended
        for name, result in results.items():
            if not any(name in turns for turns in rounds):
                result.failed = result.failed or NO_ROUND
    for turns in rounds:
        for name, (images, seconds) in turns.items():
            results[name].images.append(images)
            results[name].seconds.append(seconds)
    return results, len(rounds)


def _round(
    number: int, share: dict[str, int], results: dict[str, Result], living: dict[str, Process]
) -> dict[str, tuple[int, float]]:
    """(images, seconds) of the turns of all that live."""
    names, turns = list(living), {}
    first = number % max(1, len(names))
    for name in names[first:] + names[:first]:
        try:
            turns[name] = living[name].turn(share[name])
        except Failed as reason:
            _drop(name, str(reason), results, living)
    return turns


def _end(living: dict[str, Process]) -> None:
    for process in living.values():
        process.end()


def _drop(name: str, reason: str, results: dict[str, Result], living: dict[str, Process]) -> None:
    results[name].failed = reason
    living.pop(name).end()
