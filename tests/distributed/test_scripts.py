"""The torchrun scripts: what they refuse, what they end with, and a rendezvous of two "machines" on loopback."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.test_failures import wait_for

LAUNCH = Path(__file__).parents[2] / "launch"
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.width=0.125", "tracking=none"]


def start(script: str, *words: str, cwd: Path, **environment: str) -> subprocess.Popen:
    clean = {name: value for name, value in os.environ.items() if name not in ("NODES", "MASTER_ADDR", "PYTHONPATH")}
    return subprocess.Popen(
        [LAUNCH / script, *words],
        cwd=cwd,
        env=clean | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def config(tmp_path, photos) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(f"data: {{train: {photos}}}\ntrain: {{epochs: 1, global_batch: 12, log_every_steps: 1}}\n")
    return path


@pytest.mark.parametrize(
    "script", sorted(path.name for path in LAUNCH.glob("*.s[hb]*") if path.name != "environment.sh")
)
def test_scripts_are_executable_bash(script):
    assert os.access(LAUNCH / script, os.X_OK)
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


def test_single_node_works_from_any_folder_and_ends_with_0(config, tmp_path):
    process = start("single_node.sh", "tiny.yaml", "run=here", *SMALL, cwd=tmp_path, NPROC="2")
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert "2 x 6 images" in said
    assert (tmp_path / "here" / "checkpoints" / "latest").exists()


def test_a_mistake_ends_with_2_and_one_message_before_anything_starts(config, tmp_path):
    process = start("single_node.sh", str(config), "train.global_batc=7", cwd=tmp_path)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert said.startswith("error: ")
    assert "Did you mean train.global_batch?" in said
    assert "Traceback" not in said


def test_a_batch_that_does_not_divide_says_what_would(config, tmp_path):
    process = start("single_node.sh", str(config), cwd=tmp_path, NPROC="5")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "train.global_batch=12 does not divide among 5 processes" in said
    assert "train.global_batch to 10 or 15" in said


def test_multi_node_names_what_is_not_set(config, tmp_path):
    process = start("multi_node.sh", str(config), cwd=tmp_path, NODES="2")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "MASTER_ADDR is not set" in said


@pytest.mark.slow
def test_two_machines_meet_and_train_one_model(config, tmp_path):
    where = {"NODES": "2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [str(config), f"run={tmp_path / 'run'}", *SMALL]
    machines = [start("multi_node.sh", *words, cwd=tmp_path, **where) for _ in range(2)]
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert all("2 x 6 images" in text for text in said)
    assert sum("step 4/4" in text for text in said) == 1  # rank 0 alone speaks
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def slurm_of(folder: Path, srun: str) -> dict[str, str]:
    """The environment of a batch script, with stand-ins for srun and for scontrol, which notes what it was asked."""
    for name, does in (("srun", srun), ("scontrol", f'echo "$@" >> {folder}/asked; [ $1 = requeue ] || seq 7 9')):
        tool = folder / name
        tool.write_text(f"#!/bin/sh\n{does}\n")
        tool.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "[7-9]"}
    return slurm | {"SLURM_JOB_ID": "40123", "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("cpus", ["64", None])
def test_slurm_starts_one_task_a_node_with_its_cores(tmp_path, cpus):
    """Slurm 22.05 and later: srun takes SLURM_CPUS_PER_TASK only as an option."""
    slurm = slurm_of(tmp_path, srun='printf "%s\\n" "$@"; env | grep -E "^(NODES|MASTER_|JOB_ID)"')
    if cpus:
        slurm["SLURM_CPUS_PER_TASK"] = cpus
    process = start("slurm.sbatch", "configs/vgg16.yaml", "run=a b", cwd=tmp_path, **slurm)
    said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0, said
    options = ["--kill-on-bad-exit=0", "--wait=180"] + (["--cpus-per-task=64"] if cpus else [])
    words = [*options, "launch/multi_node.sh", "configs/vgg16.yaml", "run=a b"]
    assert said[: len(words)] == words
    assert sorted(said[len(words) :]) == ["JOB_ID=40123", "MASTER_ADDR=7", "MASTER_PORT=20123", "NODES=3"]


@pytest.mark.parametrize("code", [0, 1, 2, 137, 138, 143])
def test_slurm_queues_a_job_again_at_its_time_limit_alone(tmp_path, code):
    """scancel sends SIGTERM: a job that was cancelled must not come back."""
    slurm = slurm_of(tmp_path, srun=f"exit {code}")
    process = start("slurm.sbatch", "configs/vgg16.yaml", cwd=tmp_path, **slurm)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code, said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show hostnames [7-9]"] + (["requeue 40123"] if code == 138 else [])
    assert "#SBATCH --signal=USR1@120\n" in (LAUNCH / "slurm.sbatch").read_text()


def test_multi_node_ends_before_anything_starts_when_the_master_is_unknown(config, tmp_path):
    where = {"NODES": "2", "MASTER_ADDR": "no-such-host.invalid"}
    process = start("multi_node.sh", str(config), cwd=tmp_path, **where)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert said.startswith("error: MASTER_ADDR=no-such-host.invalid cannot be resolved")
    assert said.count("error: ") == 1


@pytest.mark.slow  # 25 s each
@pytest.mark.parametrize("reaches", [pytest.param("all machines", marks=pytest.mark.prove), "one rank"])
def test_sigterm_ends_all_machines_with_143_after_a_checkpoint(config, tmp_path, reaches):
    where = {"NODES": "2", "NPROC": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [str(config), f"run={tmp_path / 'run'}", *SMALL, "train.epochs=1000"]
    machines = [start("multi_node.sh", *words, cwd=tmp_path, **where) for _ in range(2)]
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    targets = [machine.pid for machine in machines][: None if reaches == "all machines" else 1]
    if reaches == "one rank":
        targets = [int(Path(f"/proc/{targets[0]}/task/{targets[0]}/children").read_text().split()[0])]
    for target in targets:
        os.kill(target, signal.SIGTERM)
    said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [143, 143], said
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert any(f"stopped after step {step} of 4000 by SIGTERM" in text for text in said), said
    assert not any("Traceback" in text or "error: " in text for text in said), said
    assert str(step) in (tmp_path / "run" / "checkpoints" / "latest").read_text()


@pytest.mark.prove  # 5 min
def test_twenty_of_twenty_killed_ranks_come_back(config, tmp_path):
    words = [str(config), f"run={tmp_path / 'run'}", "train.epochs=9999", "train.checkpoint_every_steps=2", *SMALL]
    where = {"NODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC": "2", "MAX_RESTARTS": "20"}
    machines = [start("multi_node.sh", *words, cwd=tmp_path, **where) for _ in range(2)]
    metrics, chance = tmp_path / "run" / "metrics.jsonl", random.Random(0)

    def num_logged() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def ranks() -> list[int]:
        return [child.pid for machine in machines for child in psutil.Process(machine.pid).children()]

    wait_for(lambda: num_logged() >= 3, 180)
    try:
        for kill in range(20):
            before, logged = ranks(), num_logged()
            assert len(before) == 4, kill
            os.kill(chance.choice(before), signal.SIGKILL)
            wait_for(lambda: len(ranks()) == 4 and not set(ranks()) & set(before), 60)  # noqa: B023
            wait_for(lambda: num_logged() >= logged + 3, 60)  # noqa: B023
            time.sleep(chance.uniform(0, 1))
        machines[1].terminate()
        said = [machine.communicate(timeout=60)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [143, 143], said
