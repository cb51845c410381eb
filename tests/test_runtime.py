"""Stopping: by a signal, by a refusal, and out of a wait that may never end."""

import os
import signal
import time

import pytest

from pipeline import runtime
from pipeline.errors import UserError
from pipeline.runtime import StopRequest


@pytest.fixture
def stop(alone):
    request = StopRequest(alone)
    yield request
    request.close()


def test_a_signal_and_a_refusal_are_polled(stop):
    assert not stop.poll()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.poll()
    assert (stop.signal, stop.refusal) == ("SIGUSR1", None)


def test_the_first_refusal_counts(stop):
    stop.refuse("rotten")
    stop.refuse("more rotten")
    assert stop.poll()
    assert stop.refusal == "rotten"


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
