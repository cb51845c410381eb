"""Where a job hangs, in words; and what a launcher's watch tells and ends when positions stand still."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from launch import watch
from launch.ranks import Rank, Seen, explain
from launch.watch import Watch
from pipeline import whereabouts
from pipeline.whereabouts import COMPUTE, DATA, EVALUATE, SAVE, START, Whereabouts


def seen(rank: int, step: int = 7, point: int = COMPUTE, state: str = "S", host: str | None = None) -> Seen:
    """Two ranks a machine."""
    return Seen(rank, host or "ab"[rank // 2], 1000 + rank, step, point, 25.0, state)


@pytest.mark.parametrize(
    ("ranks", "unheard", "words"),
    [
        ([seen(0), seen(1), seen(2), seen(3)], {}, "all ranks are at the computation of step 7"),
        ([seen(0, 0, START)], {}, "all ranks are at the start"),
        (
            [seen(0), seen(1), seen(2, point=DATA), seen(3)],
            {},
            "rank 2 on b is still at the data of step 7; the others are at the computation of step 7",
        ),
        (
            [seen(0, 9), seen(1, 9), seen(2, 8, EVALUATE, "D"), seen(3, 8, EVALUATE, "D")],
            {},
            "rank 2, 3 on b are still at the evaluation after step 8, waiting for a disk; the others are at the "
            "computation of step 9",
        ),
        (
            [seen(0), seen(1), seen(2, state="T"), seen(3)],
            {},
            "rank 2 on b is stopped by a signal (kill -CONT 1002 lets it go on); the others are at the computation of "
            "step 7",
        ),
        (
            [seen(0), seen(1), seen(2), seen(3)],
            {"b": 21.4},
            "nothing was heard of b for 21 s (is it down, or the network towards it?); the others are at the "
            "computation of step 7",
        ),
        ([seen(0, state="T")], {}, "rank 0 on a is stopped by a signal (kill -CONT 1000 lets it go on)"),
        (
            [seen(n, 7 + (n > 9), host=f"node{n // 5}") for n in range(40)],
            {},
            "rank 0, 1, 2, 3 ... on node0 and rank 5, 6, 7, 8 ... on node1 are still at the computation of step 7; the "
            "others are at the computation of step 8",
        ),
    ],
)
def test_words(ranks, unheard, words):
    assert explain(ranks, unheard) == words


# A watch on real files and processes; the launcher's threads run, but faster


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"QUIET_S": 0.5, "LOOK_S": 0.05, "REPORT_S": 0.1, "UNHEARD_S": 30, "OBEY_S": 60}.items():
        monkeypatch.setattr(watch, name, seconds)


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """This process as rank 0: its watched description and its notes."""
    error_file = tmp_path / "0" / "error.json"
    error_file.parent.mkdir()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
    (tmp_path / "run").mkdir()
    return Rank(0, os.getpid(), str(error_file)), Whereabouts(tmp_path / "run", stall_s=2.0)


@pytest.fixture
def started(rank) -> Iterator[tuple[Watch, list[str]]]:
    """A watch over this process, and what it says."""
    said: list[str] = []
    guard = Watch(said.append)
    guard.started([rank[0]], None, 0, 1)
    guard._contact_s = float("inf")  # one machine alone has no store to lose
    yield guard, said
    guard.close()  # or it would take the signals of other tests for its launcher's


def test_a_rank_that_moves_is_left_alone(quick, rank, started):
    guard, said = started
    for step in range(1, 30):
        rank[1].note(COMPUTE, step)
        time.sleep(0.1)
    guard.ending()
    assert said == []
    assert guard.verdict is None


def stand_still(guard: Watch, rank) -> None:
    """After some steps, until the verdict."""
    for step in (2, 3, 4):
        rank[1].note(COMPUTE, step)
        time.sleep(0.1)
    deadline = time.monotonic() + 20
    while guard.verdict is None and time.monotonic() < deadline:
        time.sleep(0.05)
    guard.ending()


def test_a_rank_that_stands_still_is_told_and_ended(quick, rank, started, tmp_path):
    guard, said = started
    stand_still(guard, rank)
    assert 1 <= len(said) <= 2  # at 0.5 s, and at three times that
    assert said[0].startswith("warning: no rank has come to a new point for ")
    assert "all ranks are at the computation of step 4. The job ends after 0.0333333 min of this" in said[0]
    assert guard.verdict
    assert (guard.verdict.exit_code, guard.verdict.stalled) == (1, True)
    (stacks,) = (tmp_path / "run").glob("stacks-*.txt")
    assert str(stacks) in guard.verdict.words
    assert "test_a_rank_that_stands_still_is_told_and_ended" in stacks.read_text()


def test_a_run_folder_that_hangs_does_not_keep_the_job_from_its_end(quick, rank, started, monkeypatch):
    """The disk that all wait for is the one that the stacks go to."""
    guard, _ = started
    monkeypatch.setattr(watch, "STACKS_S", 0.2)
    monkeypatch.setattr(guard, "_stacks", lambda seen: time.sleep(60))
    stand_still(guard, rank)
    assert guard.verdict
    assert "stacks of its ranks could not be written in 0 s" in guard.verdict.words


def test_a_second_signal_does_not_make_the_watch_spin(started, monkeypatch):
    guard, _ = started
    looks: list[int] = []
    monkeypatch.setattr(guard, "_look", lambda: looks.append(1))
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)
        time.sleep(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(looks) < 10


def test_a_look_that_fails_is_told_once_and_the_watch_goes_on(quick, started, monkeypatch):
    guard, said = started

    def fail() -> None:
        raise KeyError("node-b")

    monkeypatch.setattr(guard, "_look", fail)
    time.sleep(1)
    assert sum("the watch of this job failed once" in text for text in said) == 1


def test_a_long_checkpoint_is_no_stall_yet(quick, rank, started):
    guard, said = started
    rank[1].note(SAVE, 4)
    time.sleep(1.2)
    guard.ending()
    assert said == []


def test_slow_steps_and_a_first_step_are_given_time(quick, rank, started):
    guard, said = started
    rank[1].note(COMPUTE, 1)
    time.sleep(1.2)  # it compiles
    assert said == []
    rank[1].note(COMPUTE, 2)
    time.sleep(0.15)
    assert guard._longest_s == 0  # the first step tells nothing of the others
    for step in (2, 3):
        rank[1].note(COMPUTE, step)
        time.sleep(0.45)
    rank[1].note(COMPUTE, 4)
    time.sleep(1.0)  # twice a step
    assert said == []
    guard.ending()


def test_a_stop_is_not_waited_for_when_nothing_moves(quick, rank, started):
    guard, _ = started
    assert guard.hangs() is None  # it starts, which may take long
    for step in range(2, 6):
        rank[1].note(COMPUTE, step)
        time.sleep(0.15)
    assert guard.hangs() is None
    time.sleep(0.8)
    assert guard.hangs() == "all ranks are at the computation of step 5"
    rank[1].note(SAVE, 5)
    time.sleep(0.8)
    assert guard.hangs() is None  # it writes
    guard.ending()


def test_half_a_note_is_none(rank):
    whereabouts.position_file(rank[0].error_file).write_text('[4, 2, 1.0, 2.0, "ru')
    assert whereabouts.read(rank[0].error_file) is None


def test_without_torchrun_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    before = signal.getsignal(signal.SIGUSR2)
    Whereabouts(tmp_path, 1.0).note(COMPUTE, 1)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGUSR2) == before
