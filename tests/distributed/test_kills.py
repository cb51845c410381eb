"""The short form of `make soak`: some kills and signals, the weights of an undisturbed run, nothing left over."""

import pytest

from tests.distributed import soak


@pytest.mark.slow  # 1 min
def test_runs_that_are_killed_end_in_the_weights_of_undisturbed_ones(tmp_path, monkeypatch):
    log = tmp_path / "soak.log"
    monkeypatch.setattr("sys.argv", ["soak", "--number", "2", "--seed", "1", "--log", str(log)])
    assert soak.main() == 0, log.read_text()
