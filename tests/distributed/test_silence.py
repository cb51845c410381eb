"""Jobs that hang, on two "machines" on loopback: told within half a minute, by name, and ended when that lasts."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.test_failures import launch, outcome, wait_for

# Steps of 20 ms with a reduction in each. `stall_s` as from train.stall_minutes.
STEPS = """
import os, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from launch.command import Stopped, run
from pipeline.runtime import StopRequest, start
from pipeline.whereabouts import COMPUTE, DATA, Whereabouts

def main():
    folder, stall_s = Path(sys.argv[1]), float(sys.argv[2])
    here = Whereabouts(folder, stall_s)
    with start() as runtime:
        stop, step = StopRequest(runtime), 0
        while not stop.poll():
            step += 1
            here.note(DATA, step)
            time.sleep(0.02)
            here.note(COMPUTE, step)
            dist.all_reduce(torch.ones(1))
            (folder / f"pid-{runtime.rank}").write_text(str(os.getpid()))
        raise Stopped(stop.signal)
run(lambda: main() or 0, as_rank=True)
"""


def running(folder: Path, stall_s: float, nodes: int = 2):
    """The launchers, and the processes by rank, after some steps."""
    script = folder / "script.py"
    script.write_text(STEPS)
    launchers = launch(script, str(folder), str(stall_s), ranks=2, nodes=nodes)
    files = [folder / f"pid-{rank}" for rank in range(2 * nodes)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files), 90)
    time.sleep(3)
    return launchers, [int(file.read_text()) for file in files]


@pytest.mark.slow  # 60 s
def test_a_stopped_rank_is_named_and_the_job_ends(tmp_path):
    launchers, ranks = running(tmp_path, stall_s=30)
    os.kill(ranks[2], signal.SIGSTOP)
    codes, said, _ = outcome(launchers)
    assert codes == [1, 1], said
    named = f"rank 2 on {os.uname().nodename} is stopped by a signal (kill -CONT {ranks[2]} lets it go on)"
    (first,) = [text for text in said if "warning: no rank has come to a new point for 2" in text]  # 20 to 29 s
    assert named in first
    for text in said:
        last = text.rstrip().splitlines()[-1]
        assert last.startswith("error: no rank has come to a new point for 0.5"), text
        assert named in last
        assert "Traceback" not in text
    stacks = [path.read_text() for path in tmp_path.glob("stacks-*.txt")]
    assert any("all_reduce" in text for text in stacks)


@pytest.mark.prove  # 45 s
def test_sigterm_ends_a_job_that_hangs_and_tells_what_is_lost(tmp_path):
    launchers, ranks = running(tmp_path, stall_s=0)
    os.kill(ranks[2], signal.SIGSTOP)
    time.sleep(5)
    sent = time.time()
    launchers[0].send_signal(signal.SIGTERM)
    codes, said, ended = outcome(launchers)
    assert ended - sent < 40, said
    assert codes == [143, 143], said
    for text in said:
        assert "error: the job hangs: " in text
        assert text.rstrip().endswith("what came after the last checkpoint is lost. The same command goes on from it")


@pytest.mark.prove  # 35 s
def test_a_launcher_tells_which_machines_have_come(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("")
    alone, missing = launch(script, ranks=1, nodes=2)
    missing.kill()
    time.sleep(28)
    alone.send_signal(signal.SIGINT)
    codes, said, _ = outcome([alone])
    assert codes == [130], said
    assert "warning: 1 of 2 machines have come in 2" in said[0]
    assert "Start the same command on the others" in said[0]
