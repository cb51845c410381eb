"""Contestants take turns; what happens when one ends, or the race is cut. No time is asserted."""

import os
import sys
from functools import partial
from pathlib import Path

from pipeline.bench.race import NO_ROUND, Process, race

ROOT = Path(__file__).parents[2]
# Answers as a contestant does; leaves in its second counted turn if told so.
FAKE = """
import json, sys
print(json.dumps({"versions": "fake 1"}), flush=True)
for turn, line in enumerate(sys.stdin):
    if turn == int(sys.argv[1]):
        sys.exit("had enough")
    print(json.dumps({"images": int(line.split()[1]), "seconds": 0.5}), flush=True)
"""


def test_one_that_ends_is_left_out_with_its_last_words(tmp_path):
    def begin(name: str, turns: int) -> Process:
        return Process([sys.executable, "-c", FAKE, str(turns)], dict(os.environ), ROOT, tmp_path / name)

    results, num_rounds = race(
        {name: partial(begin, name, turns) for name, turns in (("stays", 99), ("leaves", 2))}, 3, 10, 1, print
    )
    assert num_rounds == 3
    assert results["stays"].rates == [40, 40, 40]  # the first turn told that 20 images take a second
    assert results["stays"].versions == "fake 1"
    assert results["leaves"].failed == "ended: had enough"
    assert len(results["leaves"].rates) == 1


def test_a_race_that_is_cut_keeps_its_whole_rounds(tmp_path):
    begun: list[Process] = []

    def begin(name: str) -> Process:
        begun.append(Process([sys.executable, "-c", FAKE, "99"], dict(os.environ), ROOT, tmp_path / name))
        if name == "last":
            turn = begun[-1].turn
            turns = iter(range(99))
            begun[-1].turn = lambda number: interrupt() if next(turns) == cut_at else turn(number)  # type: ignore[method-assign]
        return begun[-1]

    def interrupt() -> None:
        raise KeyboardInterrupt

    names = ("first", "last")
    cut_at = 3  # its third counted turn
    results, num_rounds = race({name: partial(begin, name) for name in names}, 5, 10, 1, print)
    assert (num_rounds, [len(results[name].rates) for name in names]) == (2, [2, 2])
    assert all(process.process.returncode is not None for process in begun)
    cut_at = 0  # before anything counts
    results, num_rounds = race({name: partial(begin, name) for name in names}, 5, 10, 1, print)
    assert (num_rounds, {results[name].failed for name in names}) == (0, {NO_ROUND})
