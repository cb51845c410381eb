"""python -m launch.train on tiny photos: trains, goes on, and tells every mistake in one message with exit code 2."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from launch import train as command
from models.build import build
from pipeline import hints
from pipeline.config_io import load
from tests.conftest import called, disk_of, fill, refused

ROOT = Path(__file__).parents[2]


def python(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command, variables = [sys.executable, *map(str, words)], os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)


def train(config: Path, *words: str | Path) -> subprocess.CompletedProcess:
    return python("-m", "launch.train", config, *words)


def write_config(folder: Path, train_set: Path, validation: Path) -> Path:
    tree = {
        "run": str(folder / "run"),
        "tracking": "none",
        "data": {"train": str(train_set), "validation": str(validation), "crop_px": 64, "resize_px": 72, "threads": 1},
        "model": {"name": "alexnet", "width": 0.125},
        "train": {"epochs": 1, "global_batch": 10, "log_every_steps": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def points(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(photos, held_out, tmp_path_factory) -> tuple[Path, Path, str]:
    """A config, the run folder that one epoch of it left, and what was printed. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, photos, held_out)
    ended = train(config)
    assert ended.returncode == 0, ended.stderr
    return config, folder / "run", ended.stdout


@pytest.fixture
def config(tmp_path, photos, held_out) -> Path:
    return write_config(tmp_path, photos, held_out)


# Training


def test_checkpoints_come_by_the_clock_too(config):
    ended = train(config, "train.checkpoint_every_minutes=0.00001", "train.keep_checkpoints=9")
    assert ended.returncode == 0, ended.stderr
    names = sorted(path.name for path in (config.parent / "run" / "checkpoints").glob("step-*"))
    assert names == [f"step-{step:08d}" for step in range(1, 6)]


def test_training_leaves_config_metrics_and_checkpoint(trained):
    config, run, _ = trained
    assert load(run / "config.yaml") == load(config)
    logged = [point["step"] for point in points(run) if "train/loss" in point]
    assert logged == [2, 4, 5]
    scored = [point for point in points(run) if "eval/centre/top1_error" in point]
    assert [point["step"] for point in scored] == [5]
    assert (scored[0]["eval/centre/top1_error"] * 23) % 1 == pytest.approx(0, abs=1e-9)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best", "latest", "step-00000005"]


def test_console_shows_a_line_a_point(trained):
    lines = trained[2].splitlines()
    assert [line.split()[1] for line in lines if "loss" in line] == ["2/5", "4/5", "5/5"]
    assert any(line.startswith("step 5  validation  centre: top-1 error ") for line in lines)


def test_progress_holds_what_a_resumed_run_needs(trained):
    _, run, _ = trained
    progress = json.loads((run / "checkpoints" / "step-00000005" / "progress.json").read_text())
    assert (progress["step"], progress["epoch"], progress["samples_seen"]) == (5, 1.0, 50)
    assert len(progress["errors"]) == 1
    assert progress["best_step"] == 5


def test_what_is_left_out_is_said_at_each_start_and_kept_with_the_run(make_set, held_out, tmp_path):
    """The set's quarantine changes between the starts; the run's own does not."""
    folder = make_set("rotten", 50, broken=[3])
    other = hashlib.blake2b(b"another image", digest_size=8).hexdigest()
    (folder / "quarantine.tsv").write_text(
        f"shard\tkey\treason\tdigest\nshard-000000.tar\t00003\ttorn\t\nshard-000000.tar\t00004\tmended since\t{other}\n"
    )
    config, run = write_config(tmp_path, folder, held_out), tmp_path / "run"
    ended = train(config)
    assert ended.returncode == 0, ended.stderr
    said = f"1 of 50 images of {folder} are left out: see {run}/quarantine.tsv\n"
    again = f"1 of the images that {folder}/quarantine.tsv lists have other bytes now: tried again\n"
    assert said + again in ended.stdout
    (folder / "quarantine.tsv").unlink()
    ended = train(config, "train.epochs=2")
    assert said in ended.stdout
    assert again not in ended.stdout
    expected = hashlib.sha256(json.dumps([["shard-000000.tar", "00003"]]).encode()).hexdigest()[:16]
    for step in (5, 10):
        progress = json.loads((run / "checkpoints" / f"step-{step:08d}" / "progress.json").read_text())
        assert progress["quarantine_fingerprint"] == expected
    ended = python("-m", "launch.evaluate", run, "--views", "centre")
    assert ended.returncode == 0, ended.stderr
    scored = json.loads((run / "evaluation.json").read_text())
    assert scored["networks"][0]["quarantine_fingerprint"] == expected
    assert scored["quarantine_fingerprint"] == hashlib.sha256(b"[]").hexdigest()[:16]


def test_going_on_equals_never_having_stopped(trained, tmp_path, config):
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    shutil.copytree(trained[1], resumed)
    on = train(config, f"run={resumed}", "train.epochs=2")
    assert on.returncode == 0, on.stderr
    assert f"going on after step 5 of 10, from {resumed}/checkpoints/step-00000005" in on.stdout
    assert "changed since then: train.epochs: 1.0 -> 2.0" in on.stdout
    assert [point["step"] for point in points(resumed)] == [2, 4, 5, 5, 6, 8, 10, 10]

    assert train(config, f"run={whole}", "train.epochs=2").returncode == 0
    expected, found = weights(whole, 10), weights(resumed, 10)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["classifier.6.weight"], weights(resumed, 5)["classifier.6.weight"])


def test_finished_run_says_so_and_what_next(trained):
    config, run, _ = trained
    before = (run / "metrics.jsonl").read_bytes()
    ended = train(config)
    assert ended.returncode == 0
    assert ended.stdout == (
        f"{run} is finished: 5 steps are done, 5 were asked for. Train longer with train.epochs=..., anew with "
        "run=..., or score it with: "
        f"{hints.command('launch.evaluate', run)}\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_deeper_vgg_grows_from_a_trained_a(tmp_path, photos):
    """One step at a learning rate that moves no weight by 1e-6, and another one after A is gone."""
    shallow, run = tmp_path / "a.safetensors", tmp_path / "run"
    save_file(build("vgg11", num_classes=5, width=0.125).state_dict(), shallow)
    config = write_config(tmp_path, photos, photos)
    words = ["model.name=vgg13", f"model.grow_from={shallow}", "train.global_batch=50", "optimizer.lr=1e-9"]
    words += ["data.validation=none"]
    ended = train(config, *words)
    assert ended.returncode == 0, ended.stderr
    theirs, first = load_file(shallow), weights(run, 1)
    for ours, of_a in {"features.5": "features.3", "features.12": "features.8", "classifier.6": "classifier.6"}.items():
        torch.testing.assert_close(first[f"{ours}.weight"], theirs[f"{of_a}.weight"], rtol=0, atol=1e-6)

    shallow.unlink()
    ended = train(config, *words, "train.epochs=2")
    assert ended.returncode == 0, ended.stderr
    torch.testing.assert_close(weights(run, 2), first, rtol=0, atol=1e-6)


def test_a_shard_that_is_cut_under_a_running_job_is_named(make_set, config, tmp_path):
    """Where it is first noticed, between batches or in a decoder's thread, is chance; the message is the same."""
    shard = make_set("own", 50) / "shard-000001.tar"
    content, metrics = shard.read_bytes(), tmp_path / "run" / "metrics.jsonl"
    words = [config, f"data.train={shard.parent}", "data.validation=none", "train.checkpoint_every_steps=5"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "launch.train", *map(str, words)]
    process = subprocess.Popen([*command, "train.epochs=10000"], cwd=ROOT, **pipes)  # type: ignore[call-overload]
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None
        time.sleep(0.02)
    os.truncate(shard, 1000)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 2, told
    assert told == (
        f"error: {shard} changed while this job was reading it: it has 1000 bytes and had {len(content)}. Bring the "
        f"whole file back, then start the same command again\n"
    )
    step = int((tmp_path / "run" / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    shard.write_bytes(content)
    ended = train(*words, f"train.epochs={(step + 5) / 5}")
    assert f"going on after step {step} of {step + 5}" in ended.stdout, ended.stderr


def test_what_a_killed_save_left_is_removed_before_anything_is_written(config, trained, tmp_path):
    with disk_of(tmp_path / "small", 16 << 20) as disk:
        run = disk / "run"
        leftover = run / "checkpoints" / ".writing-step-00000003"
        leftover.mkdir(parents=True)
        (run / ".lock").touch()
        (run / "quarantine.tsv").write_text("shard\tkey\treason\n")
        fill(leftover)
        ended = train(config, f"run={run}")
        assert ended.returncode == 0, ended.stderr
        assert not leftover.exists()
        assert weights(run, 5).keys() == weights(trained[1], 5).keys()


def test_a_full_disk_under_the_terminals_words_is_a_warning(config, tmp_path):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "launch.train", config]
        ended = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("warning: standard output cannot be written (No space left on device)") == 1
    assert "Traceback" not in ended.stderr
    assert points(tmp_path / "run")[-1]["step"] == 5


@pytest.mark.parametrize(("left", "name"), [(0, "quarantine.tsv"), (4096, "config.yaml"), (8192, "metrics.jsonl")])
def test_a_disk_that_is_full_from_the_start(config, tmp_path, left, name):
    with disk_of(tmp_path / "small", 16 << 20) as disk:
        filler, run = fill(disk, left), disk / "run"
        told = refused(train(config, f"run={run}"))
        assert f"{run / name} cannot be written: the disk is full (it takes " in told
        assert not list(run.glob("*.tmp"))
        filler.unlink()
        ended = train(config, f"run={run}")
        assert ended.returncode == 0, ended.stderr


# Looking without starting


IMPORTS = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = module
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported:", sorted({"torch", "deepspeed", "nvidia", "wandb"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("module", ["launch.train", "launch.evaluate"])
def test_help_imports_nothing_heavy(module):
    ended = python("-c", IMPORTS, module, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "usage: " in ended.stdout
    assert ended.stdout.endswith("imported: []\n")


def test_help_lists_the_keys_of_the_config():
    text = python("-m", "launch.train", "--help").stdout
    assert "  optimizer.lr=0.01\n      Learning rate at its highest" in text


def test_check_starts_nothing_and_imports_nothing_heavy(config, tmp_path):
    ended = python("-c", IMPORTS, "launch.train", config, "--check", "--processes", "2")
    run = tmp_path / "run"
    assert ended.returncode == 0, ended.stderr
    said, imported = ended.stdout.splitlines()
    assert said == f"{run}: alexnet on 50 images of 5 classes, 2 x 5 images x 1 a step, from the start"
    assert imported == "imported: []"
    assert not run.exists()


def test_check_names_the_checkpoint_to_go_on_from(trained):
    ended = train(trained[0], "train.epochs=3", "--check", "train.micro_batch=5")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[0].endswith("1 x 5 images x 2 a step, going on after step 5")
    assert "changed since then: train.epochs: 1.0 -> 3.0" in said[1:]


def test_check_loads_the_weights_that_a_run_would_start_from(trained, config, tmp_path):
    """Of a run folder its last checkpoint's; what does not fit is refused before anything starts."""
    _, run, _ = trained
    words = ["--check", "--processes", "1"]
    ended = called(command.main, config, *words, f"model.weights={run}")
    assert ended.returncode == 0, ended.stderr
    told = refused(called(command.main, config, *words, f"model.weights={run}", "model.num_classes=7"))
    assert f"model.weights={run}: the weights of the checkpoint do not fit the model" in told
    assert "the checkpoint has 5 classes, the model 7; model.reset_head=true keeps a fresh last layer" in told
    (tmp_path / "notes.pth").write_text("no weights")
    told = refused(called(command.main, config, *words, f"model.weights={tmp_path / 'notes.pth'}"))
    assert "is not a torch file" in told
    assert "Re-running" not in told
    told = refused(called(command.main, config, *words, f"model.weights={tmp_path}"))
    assert f"model.weights={tmp_path}: {tmp_path} is neither a run nor a checkpoint" in told


def test_check_refuses_a_gpu_that_is_not_there(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = called(command.main, config, "--check", "--processes", "1", "data.decoder=gpu")
    assert "data.decoder=gpu, but this process has no GPU" in refused(ended)


# Mistakes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["optimizer.learningrate=1"], "optimizer.learningrate is no known key"),
        (["optimizer.lr=fast"], "optimizer.lr='fast' must be a valid number"),
        (["optimizer.lr"], "'optimizer.lr' is no override"),
        (["data.train=none"], "data.train is not set"),
        (["data.train=/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["model.name=alexnt"], "unknown model 'alexnt'"),
        (["--check", "--processes", "3"], "does not divide among 3 processes"),
        (["--check", "--processes", "-1"], "--processes -1 must be at least 1"),
    ],
)
def test_mistake_in_words(config, words, reason):
    assert reason in refused(called(command.main, config, *words))


def test_only_the_config_is_required():
    ended = python("-m", "launch.train")
    assert ended.returncode == 2
    assert ended.stderr == "error: the following arguments are required: config. See --help\n"


def test_missing_config_file(tmp_path):
    assert f"{tmp_path}/none.yaml: there is no such config file" in refused(train(tmp_path / "none.yaml"))


def test_incomplete_environment_of_torchrun(config):
    ended = python("-m", "launch.train", config, RANK="0", WORLD_SIZE="2")
    assert "RANK is set, but LOCAL_RANK, LOCAL_WORLD_SIZE not" in refused(ended)


def lose_a_shard(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()


def grow_a_shard(folder: Path) -> None:
    with open(folder / "shard-000001.tar", "ab") as file:
        file.write(bytes(512))


def change_a_byte(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    later_ns = (folder / "manifest.json").stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later_ns, later_ns))


def forget_classes(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"classes": manifest["classes"][:3]}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_a_shard, "{folder}/shard-000001.tar is missing; {folder}/manifest.json lists it"),
        (grow_a_shard, "{folder}/shard-000001.tar changed since it was indexed: it has "),
        (change_a_byte, "{folder}/shard-000001.tar changed since it was indexed: its SHA-256 is not the one in"),
        (forget_classes, "sample '00003' has label 3, but the class list in {folder}/manifest.json has 3 names"),
    ],
)
@pytest.mark.parametrize("which", ["train", "validation"])
def test_damaged_set(config, make_set, damage, reason, which):
    folder = make_set("damaged", 20)
    damage(folder)
    assert reason.format(folder=folder) in refused(train(config, f"data.{which}={folder}"))


def test_shard_that_was_only_touched_is_fine(config, make_set):
    folder = make_set("touched", 20)
    later_ns = (folder / "manifest.json").stat().st_mtime_ns + 10**9
    os.utime(folder / "shard-000001.tar", ns=(later_ns, later_ns))
    assert train(config, f"data.train={folder}", "--check").returncode == 0


def test_empty_set(config, make_set: Callable[..., Path]):
    folder = make_set("empty", 0)
    assert f"{folder} holds no samples" in refused(train(config, f"data.train={folder}"))


def test_corrupt_checkpoint_to_go_on_from(trained, config, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-00000005" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert f"{file} is not what was written" in refused(train(config, "train.epochs=2"))


def test_checkpoint_of_another_model(trained):
    text = refused(train(trained[0], "model.width=0.25"))
    assert "model.width=0.25, but " in text
    assert "was trained with 0.125. Set it back, or start another run" in text


def test_mistake_found_after_the_start(config):
    """Images too small for the network are seen when it is built, in the process group."""
    text = refused(train(config, "data.crop_px=16", "model.name=torchvision:alexnet", "model.width=none"))
    assert "model.name=torchvision:alexnet, data.crop_px=16: torchvision:alexnet: images of 16 px are too small" in text


def test_a_diverged_loss_is_never_saved(photos, tmp_path):
    """The epoch ends, and with it a checkpoint is due, long before a point would be logged."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"data: {{train: {photos}, crop_px: 64, resize_px: 72, threads: 1}}\nmodel: {{width: 0.125}}\n"
        f"optimizer: {{lr: 1.0e+12}}\ntrain: {{global_batch: 10}}\ntracking: none\nrun: {tmp_path / 'run'}\n"
    )
    said = subprocess.run(
        [sys.executable, "-m", "launch.train", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 2, said.stderr
    assert "training diverged" in said.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["data.crop_px=32", "data.resize_px=40"],
            "data.crop_px=32 is too small for model.name=alexnet: give 63 or more",
        ),
        (["model.name=alexnet_2012", "model.groups=3"], "model.groups=3: give one of 1, 2, 4, 8"),
    ],
)
def test_check_refuses_what_the_network_refuses(photos, tmp_path, words, told):
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{train: {photos}}}\ntrain: {{global_batch: 10}}\n")
    said = subprocess.run(
        [sys.executable, "-m", "launch.train", str(path), *words, "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert told in said.stderr


def test_a_second_job_in_the_run_folder_is_refused(config, tmp_path):
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert f"another job trains in {run} now" in refused(train(config, f"run={run}"))
    assert sorted(path.name for path in run.iterdir()) == [".lock"]
