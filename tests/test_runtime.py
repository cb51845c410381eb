"""Stopping: by a signal, by a refusal, and out of a wait that may never end."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline import runtime
from pipeline.errors import UserError
from pipeline.runtime import Runtime, StopRequest


@pytest.fixture
def stop(alone):
    request = StopRequest(alone)
    yield request
    request.close()


def test_a_signal_and_a_refusal_are_polled(stop):
    assert not stop.poll()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.poll()
    assert (stop.signal, stop.any_refusal()) == (signal.SIGUSR1, None)


def test_the_first_refusal_counts(stop):
    stop.refuse("rotten")
    stop.refuse("more rotten")
    assert stop.poll()
    assert stop.any_refusal() == "rotten"


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_ends_a_wait_that_does_not_end(stop, monkeypatch, before):
    monkeypatch.setattr(runtime, "WAIT_S", 0.05)
    if before:
        os.kill(os.getpid(), signal.SIGTERM)

    def wait():
        with stop.waiting():
            if not before:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(UserError, match="stopped by SIGTERM while waiting for data"):
        wait()


def test_a_wait_that_ends_in_time_is_left_alone(stop, monkeypatch):
    monkeypatch.setattr(runtime, "WAIT_S", 0.05)
    with stop.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    assert stop.poll()


# Ranks of different speed


def rank_that_polls(rank: int, folder: str) -> None:
    """Steps of 2 and 4 ms; the second rank gets a signal in its step 100. Writes the step that stopped it, and in how
    many steps there was a reduction."""
    runtime.POLL_S = 0.05
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    where = Runtime(rank, 2, rank, 2, torch.device("cpu"), dist.new_group(backend="gloo"))
    reductions, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda *given, **how: reductions.append(step) or all_reduce(*given, **how)
    stop, saved = StopRequest(where), []
    for step in range(10_000):
        time.sleep(0.002 * (1 + rank))
        if rank == 1 and step == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        stop.save_due = stop.save_due or (rank == 0 and step == 50)
        stopping = stop.poll()
        saved += [step] * stop.save_now
        if stopping:
            break
    stop.close()
    Path(folder, str(rank)).write_text(" ".join(map(str, (step, len(reductions), *saved))))
    dist.destroy_process_group()


def test_ranks_of_different_speed_stop_and_save_in_the_same_steps_and_ask_seldom(tmp_path):
    mp.spawn(rank_that_polls, (str(tmp_path),), 2)
    first, second = ([int(word) for word in (tmp_path / str(rank)).read_text().split()] for rank in range(2))
    assert first == second
    step, num_reductions, saved = first  # a checkpoint that one rank's clock asked for is written once, by all
    assert 50 <= saved < 100
    assert 100 <= step < 200
    assert num_reductions < step / 3


def test_one_slow_step_does_not_make_ranks_disagree(alone, monkeypatch):
    """The number of steps until the next reduction is the smallest that any rank proposed."""
    proposals: list[list[int]] = []

    def all_reduce(flags: torch.Tensor, **_: object) -> Any:
        proposals.append(flags.tolist())
        flags[3] = max(flags[3].item(), -3)  # another rank proposes 3
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(StopRequest, "close", lambda self: None)
    stop = StopRequest(replace(alone, control="group"))
    polled = []
    for step in range(12):
        before = len(proposals)
        stop.poll()
        polled += [step] * (len(proposals) - before)
    assert polled == [0, 1, 4, 7, 10]  # the first answer comes with the second reduction
    assert all(steps < -3 for *_, steps in proposals[1:])
