"""How a job ends: within seconds when a rank fails, whatever the others wait for; in its own time when stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# All ranks meet, then `failing` fails. The others wait in C, where no Python handler runs: in an all_reduce of their
# machine that its first rank never joins, the first rank in the store. As with NCCL, no connection tells them.
STUCK = """
import os, signal, sys, time
import torch, torch.distributed as dist
from launch.command import run
from pipeline.errors import UserError
from pipeline.runtime import StopRequest, start

def main():
    with start() as runtime:
        firsts = range(0, runtime.world, runtime.local_world)
        machines = [[first + n for n in range(runtime.local_world) if first + n != {failing}] for first in firsts]
        groups = [dist.new_group(ranks, backend="gloo") for ranks in machines]
        StopRequest(runtime)
        dist.barrier()
        if runtime.rank == {failing}:
            print("failing at", time.time(), flush=True)
            {failure}
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":
            return
        machine = runtime.rank // runtime.local_world
        if runtime.rank == machines[machine][0]:
            dist.distributed_c10d._get_default_store().wait(["never"])
        dist.all_reduce(torch.ones(1), group=groups[machine])
run(lambda: main() or 0, as_rank=True)
"""
# After SIGTERM both ranks take longer to write than a failed job is left, rank 1 longest.
SLOW_TO_STOP = """
import os, sys, time
from pathlib import Path
from launch.command import Stopped, run
from pipeline.runtime import StopRequest, start

def main():
    with start() as runtime:
        Path(sys.argv[1], f"pid-{runtime.rank}").write_text(str(os.getpid()))
        stop = StopRequest(runtime)
        Path(sys.argv[1], f"ready-{runtime.rank}").touch()
        while not stop.poll():
            time.sleep(0.05)
        time.sleep(6 + 2 * runtime.rank)
        Path(sys.argv[1], f"written-{runtime.rank}").touch()
        stop.close()
        raise Stopped(stop.signal)
run(lambda: main() or 0, as_rank=True)
"""


def launch(script: Path, *words: str, ranks: int, nodes: int = 1, restarts: int = 0) -> list[subprocess.Popen]:
    """A launcher for each of `nodes` "machines" on loopback, with `ranks` processes each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [f"--nproc-per-node={ranks}", f"--nnodes={nodes}", f"--max-restarts={restarts}", "--rdzv-id=test"]
    options += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "launch.torchrun", *options, script, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(nodes)
    ]


def outcome(launchers: list[subprocess.Popen]) -> tuple[list[int], list[str], float]:
    """Exit codes, all that each said, and the time when the last had ended."""
    try:
        said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    return [launcher.returncode for launcher in launchers], said, time.time()


def seconds_after_failure(said: list[str], ended: float) -> float:
    line = next(line for text in said for line in text.splitlines() if line.startswith("failing at"))
    return ended - float(line.split()[-1])


FAILURES = {
    "bug": ('raise ValueError("batch 7 is rotten")', 1, "failed first: ValueError: batch 7 is rotten"),
    "mistake": ('raise UserError("shard-7.tar is gone")', 2, "error: shard-7.tar is gone"),
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        137,
        "failed first: killed by SIGKILL, as the kernel does when memory runs out",
    ),
}


@pytest.mark.slow  # 15 s each
@pytest.mark.parametrize("kind", ["bug", "killed", pytest.param("mistake", marks=pytest.mark.prove)])
def test_one_rank_fails_and_all_of_its_machine_end_within_ten_seconds(tmp_path, monkeypatch, kind):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    failure, code, words = FAILURES[kind]
    script = tmp_path / "script.py"
    script.write_text(STUCK.format(failing=1, failure=failure))
    codes, said, ended = outcome(launch(script, ranks=3))
    assert codes == [code], said
    assert os.listdir(temporary) == []
    assert said[0].rstrip().endswith(words)
    assert seconds_after_failure(said, ended) < 10


@pytest.mark.slow  # 15 s each
@pytest.mark.parametrize("failing", [0, 2])  # of the machine that hosts the rendezvous, or of the other one
def test_one_rank_fails_and_all_machines_end_within_ten_seconds(tmp_path, failing):
    script = tmp_path / "script.py"
    script.write_text(STUCK.format(failing=failing, failure=FAILURES["bug"][0]))
    codes, said, ended = outcome(launch(script, ranks=2, nodes=2))
    assert codes == [1, 1], said
    assert [text.rstrip().splitlines()[-1].partition("failed first: ")[2] for text in said] == [
        "ValueError: batch 7 is rotten"
    ] * 2
    assert sum(text.count("Traceback") for text in said) == 1
    assert seconds_after_failure(said, ended) < 10


@pytest.mark.slow  # 25 s
def test_all_machines_start_again_after_a_failure(tmp_path):
    script = tmp_path / "script.py"
    once = 'if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0": raise ValueError("batch 7 is rotten")'
    script.write_text(STUCK.format(failing=3, failure=once))
    codes, said, _ = outcome(launch(script, ranks=2, nodes=2, restarts=1))
    assert codes == [0, 0], said
    assert sum(text.count("batch 7 is rotten") for text in said) == 2  # the line of the source and the message


# Rank 1 is done at once, as in a scoring whose result rank 0 writes.
ONE_IS_DONE = """
import sys, time
from launch.command import run
from pipeline.runtime import start

def main():
    with start() as runtime:
        first = runtime.rank == 0
    if first:
        open(sys.argv[1], "w").close()
        time.sleep(float(sys.argv[2]))
        raise OSError("the disk is full")
run(lambda: main() or 0, as_rank=True)
"""


@pytest.mark.slow  # 15 s
def test_a_machine_whose_ranks_are_done_ends_as_the_job_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_IS_DONE)
    codes, said, _ = outcome(launch(script, str(tmp_path / "begun"), "4", ranks=1, nodes=2))
    assert codes == [1, 1], said
    assert all("failed first: OSError: the disk is full" in text for text in said)


@pytest.mark.prove  # 30 s
def test_a_machine_whose_ranks_are_done_does_not_wait_for_one_that_has_gone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_IS_DONE)
    launchers = launch(script, str(tmp_path / "begun"), "60", ranks=1, nodes=2)
    wait_for((tmp_path / "begun").exists, 60)
    time.sleep(8)
    (first,) = [one for one in launchers if Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text()]
    first.kill()
    killed = time.time()
    codes, said, ended = outcome(launchers)
    assert sorted(codes) == [-9, 1], said
    assert ended - killed < 25
    assert any("error: the ranks of this machine are done, but " in text for text in said), said


@pytest.mark.prove  # 15 s
def test_nohup_keeps_a_job_alive(tmp_path, monkeypatch):
    """SIGHUP is ignored from the start, as nohup leaves it, and comes to all processes; torch alone would end."""
    script = tmp_path / "script.py"
    ends = SLOW_TO_STOP.replace("raise Stopped(stop.signal)", "return")
    script.write_text(ends.replace("while not stop.poll():", "for _ in range(60):"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        (launcher,) = launch(script, str(tmp_path), ranks=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for((tmp_path / "ready-0").exists, 60)
    os.kill(launcher.pid, signal.SIGHUP)
    os.kill(int((tmp_path / "pid-0").read_text()), signal.SIGHUP)
    codes, said, _ = outcome([launcher])
    assert codes == [0], said


@pytest.mark.slow  # 15 s
def test_a_stop_that_comes_too_late_is_none(tmp_path):
    """The ranks are in what follows the last step, and end with 0: the run is done."""
    script = tmp_path / "script.py"
    script.write_text(SLOW_TO_STOP.replace("raise Stopped(stop.signal)", "return"))
    (launcher,) = launch(script, str(tmp_path), ranks=2)
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2, 60)
    launcher.send_signal(signal.SIGTERM)
    codes, said, _ = outcome([launcher])
    assert codes == [0], said


@pytest.mark.slow  # 10 s
def test_ranks_end_with_their_launcher_and_leave_nothing(tmp_path, monkeypatch):
    """Killed as the kernel does it, while one rank waits in C and another in the store."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    script = tmp_path / "script.py"
    script.write_text(STUCK.format(failing=3, failure=""))
    before = shared_memory()
    (launcher,) = launch(script, ranks=3)
    try:
        ranks = wait_for(lambda: children_that_wait(launcher.pid, 3), 60)
        launcher.kill()
        wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 5)
    finally:
        launcher.kill()
        launcher.communicate()
    assert shared_memory() <= before
    script.write_text("")
    codes, said, _ = outcome(launch(script, ranks=1))  # the next one takes away what the killed one could not
    assert codes == [0], said
    assert os.listdir(tmp_path / "tmp") == []


def shared_memory() -> set[str]:
    """What is in /dev/shm, but for the semaphores of other tests' pools."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def children_that_wait(pid: int, number: int) -> list[int]:
    """The ranks, once all have joined their group of the machine: gloo's threads are there."""
    ranks = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    joined = [rank for rank in ranks if len(os.listdir(f"/proc/{rank}/task")) >= 6]
    return joined if len(joined) == number else []


def wait_for(condition, seconds: float):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize(  # of one machine: the other's launcher hears nothing
    ("reaches", "number"), [pytest.param("launcher", signal.SIGUSR1, marks=pytest.mark.prove), ("rank", signal.SIGINT)]
)
def test_a_requested_stop_waits_for_the_slowest_rank_and_starts_nothing_again(tmp_path, number, reaches):
    script = tmp_path / "script.py"
    script.write_text(SLOW_TO_STOP)
    launchers = launch(script, str(tmp_path), ranks=2, nodes=2, restarts=3)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    if reaches == "launcher":
        launchers[0].send_signal(number)
        time.sleep(1)
        launchers[0].send_signal(number)  # as an impatient person does
    else:
        os.kill(int((tmp_path / "pid-2").read_text()), number)
    codes, said, _ = outcome(launchers)
    assert len(list(tmp_path.glob("written-*"))) == 4, said
    assert codes == [128 + number] * 2, said
    assert not any("Traceback" in text or "error" in text or " W1" in text for text in said), said
