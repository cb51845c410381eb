"""Whole runs through torchrun: resumed equals uninterrupted, any number of ranks scores the same, signals work."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import disk_of, refused

ROOT = Path(__file__).parents[2]
SMALL = ["data.crop_px=64", "data.resize_px=72", "data.threads=1", "model.width=0.125", "model.dropout=0.5"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, photos, held_out) -> Path:
    """Four steps an epoch, ten in all, every step logged."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"data: {{train: {photos}, validation: {held_out}}}\n"
        "optimizer: {lr: 0.005}\n"
        "schedule: {kind: cosine, warmup_epochs: 1}\n"
        "train: {epochs: 2.4, global_batch: 12, log_every_steps: 1}\n"
        "tracking: none\n"
    )
    return path


def torchrun(world: int, *words: str) -> list[str]:
    launcher = ["-m", "launch.torchrun", "--standalone", "--nproc-per-node", str(world)]
    return [sys.executable, *launcher, "-m", *words]


def run(world: int, *words: str, threads: int = 1) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        torchrun(world, *words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(world: int, config: Path, folder: Path, *words: str) -> str:
    return run(world, "launch.train", str(config), f"run={folder}", *SMALL, *words)


def points(folder: Path) -> dict[int, dict[str, float]]:
    """{step: what was logged at it, without times}."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        point = {key: value for key, value in point.items() if not key.startswith("speed/")}
        found[point["step"]] = found.get(point["step"], {}) | point
    return found


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(2, config, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_resumed_run_logs_exactly_what_an_uninterrupted_one_logs(config, uninterrupted, tmp_path, number):
    """Stopped by a signal wherever it stood, then started again by the same command: losses are equal bit for bit."""
    folder = tmp_path / "stopped"
    command = torchrun(2, "launch.train", str(config), f"run={folder}", *SMALL)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    deadline = time.monotonic() + 240
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number)  # to all processes, as a terminal does
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    stopped_at = json.loads((folder / "checkpoints" / _latest(folder) / "progress.json").read_text())["step"]
    assert 3 <= stopped_at < 10, said
    assert f"stopped after step {stopped_at}" in said

    said = train(2, config, folder)
    assert f"going on after step {stopped_at} of 10" in said
    assert points(folder) == points(uninterrupted)


def _latest(folder: Path) -> str:
    return (folder / "checkpoints" / "latest").read_text().strip()


@pytest.mark.slow
def test_a_run_goes_on_at_another_number_of_ranks(config, uninterrupted, tmp_path):
    """Five steps at 1 rank, five at 3. The same images, so the same losses but for the order of sums; no dropout."""
    folder = tmp_path / "grown"
    train(1, config, folder, "train.epochs=1.25", "model.dropout=0", "schedule.kind=constant")
    said = train(3, config, folder, "model.dropout=0", "schedule.kind=constant")
    assert "going on after step 5" in said
    whole = tmp_path / "whole"
    train(2, config, whole, "model.dropout=0", "schedule.kind=constant")
    grown, expected = points(folder), points(whole)
    assert list(grown) == list(expected)
    for step in expected:
        assert grown[step]["train/loss"] == pytest.approx(expected[step]["train/loss"], rel=1e-5)
        assert grown[step]["train/lr"] == expected[step]["train/lr"]


@pytest.mark.slow
def test_the_network_learns_the_colours(config, tmp_path):
    """Chance is 80 % error; the label is the colour of the picture."""
    folder = tmp_path / "longer"
    words = ["train.epochs=60", "optimizer.lr=0.01", "train.log_every_steps=20", "model.dropout=0"]
    train(2, config, folder, *words, "evaluation.every_epochs=60")
    run(2, "launch.evaluate", str(folder), "--views", "ten")
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["views"]["ten"]["top1_error_percent"] <= 40


@pytest.mark.slow
def test_batch_normalisation_scores_in_training_are_those_of_the_checkpoint(config, tmp_path):
    """Running statistics differ by rank; all ranks must score with those that the checkpoint keeps."""
    folder = tmp_path / "bn"
    train(2, config, folder, "model.name=vgg11_bn", "train.epochs=1.25")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "eval/centre/loss" in line][-1]
    run(1, "launch.evaluate", str(folder), "--views", "centre")
    scored = json.loads((folder / "evaluation.json").read_text())["views"]["centre"]
    assert logged["eval/centre/loss"] == pytest.approx(scored["loss"], rel=1e-6)


def test_too_many_bad_images_end_a_run_with_a_checkpoint(config, make_set, tmp_path):
    """On the rank that meets them or another: no traceback, one message, and nothing that was trained is lost."""
    rotten = make_set("rotten", 60, broken=range(20, 40))
    words = [f"data.train={rotten}", "data.max_bad_images=5", "train.epochs=4"]
    command = torchrun(2, "launch.train", str(config), f"run={tmp_path / 'run'}", *SMALL, *words)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "more than data.max_bad_images=5" in ended.stderr
    assert "is written; the same command goes on from it" in ended.stderr
    folder = tmp_path / "run" / "checkpoints" / _latest(tmp_path / "run")
    assert 1 <= json.loads((folder / "progress.json").read_text())["step"] < 20


def test_a_second_job_is_refused_without_a_traceback(config, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    with open(run_folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = torchrun(2, "launch.train", str(config), f"run={run_folder}", *SMALL)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert f"another job trains in {run_folder} now" in refused(ended)


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks_and_the_same_command_goes_on(config, uninterrupted, tmp_path):
    """Room for two checkpoints and a half; the third one is saved before the first one goes."""
    checkpoint_bytes = sum(
        file.stat().st_size for file in (uninterrupted / "checkpoints" / _latest(uninterrupted)).iterdir()
    )
    with disk_of(tmp_path / "small", checkpoint_bytes * 5 // 2) as disk:
        folder = disk / "run"
        command = torchrun(2, "launch.train", str(config), f"run={folder}", *SMALL, "train.checkpoint_every_steps=2")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        begin = time.monotonic()
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        told = refused(ended)
        assert f"{folder / 'checkpoints' / 'step-00000006'} cannot be written: the disk is full (it takes " in told
        assert told.endswith("then start the same command again: it goes on from the last checkpoint\n")
        assert sorted(path.name for path in (folder / "checkpoints").glob("*step*")) == [
            "step-00000002",
            "step-00000004",
        ]
        assert time.monotonic() - begin < 100
        subprocess.run(["mount", "-o", f"remount,size={checkpoint_bytes * 6}", disk], check=True)
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "going on after step 4 of 10" in ended.stdout
        assert points(folder) == points(uninterrupted)
