"""python -m launch.evaluate on a run of tiny photos: the counts are right, and every mistake is one message."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from launch import evaluate as command
from pipeline.data import index
from pipeline.files import file_sha256
from tests.conftest import called, refused

ROOT = Path(__file__).parents[2]
STEP = "step-00000040"


def python(*words: str | Path) -> subprocess.CompletedProcess:
    command, environment = [sys.executable, *map(str, words)], os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    ended.stdout = re.sub(r"^\[Gloo\] .*\n", "", ended.stdout, flags=re.MULTILINE)  # torch 2.10 prints such a line
    return ended


def evaluate(*words: str | Path) -> subprocess.CompletedProcess:
    return python("-m", "launch.evaluate", *words)


@pytest.fixture(scope="module")
def run(photos, held_out, tmp_path_factory) -> Path:
    """A run that was trained long enough to tell some colours, with W&B offline. Evaluations add to it."""
    folder = tmp_path_factory.mktemp("trained")
    tree = {
        "run": str(folder / "run"),
        "data": {"train": str(photos), "validation": str(held_out), "crop_px": 64, "resize_px": 72, "threads": 1},
        "model": {"name": "vgg11_bn", "width": 0.0625, "dropout": 0},
        "optimizer": {"lr": 0.02},
        "train": {"epochs": 8, "global_batch": 10, "checkpoint_every_steps": 20, "keep_checkpoints": 1},
        "evaluation": {"every_epochs": 8, "micro_batch": 9},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    ended = python("-m", "launch.train", folder / "tiny.yaml")
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def scored(run) -> tuple[str, dict]:
    """What was printed, and evaluation.json, of three views."""
    ended = evaluate(run, "--views", "centre,five,ten", "--save-predictions", run / "p.csv")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, json.loads((run / "evaluation.json").read_text())


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copied")


@pytest.mark.parametrize("view", ["centre", "five", "ten"])
def test_counts_are_those_of_the_predictions(run, held_out, scored, view):
    """Counted here from the per-image file; tests/evaluation checks the probabilities in it."""
    rows = [row for row in csv.DictReader((run / "p.csv").read_text().splitlines()) if row["view"] == view]
    found, result = index.load(held_out), scored[1]["views"][view]
    assert [int(row["label"]) for row in rows] == found.label.tolist()
    correct1 = sum(row["class_1"] == row["label"] for row in rows)
    assert 0 < correct1 < 23  # neither all nor nothing, or the count would prove little
    assert (result["seen"], result["correct1"]) == (23, correct1)
    assert not any("top5" in key or key == "correct5" for key in result)  # of five classes
    assert result["top1_error_percent"] == pytest.approx(100 - 100 * correct1 / 23)
    losses = [-math.log(float(row["label_probability"])) for row in rows]
    assert result["loss"] == pytest.approx(sum(losses) / 23, rel=1e-5)


def test_table_shows_percent(run, scored):
    printed, result = scored
    lines = printed.splitlines()
    assert lines[0].startswith("23 images of ")
    assert lines[0].endswith(f", vgg11_bn, {run}, step 40")
    rows = {line.split()[0]: line.split()[1:] for line in lines if "%  " in line and line.startswith("  ")}
    for view, score in result["views"].items():
        low, high = score["top1_interval_percent"]
        assert rows[view] == [
            f"{score['top1_error_percent']:.2f}%",
            f"{low:.2f}..{high:.2f}",
            f"{score['loss']:.3f}",
        ]
    assert f"  written     {run}/evaluation.json" in lines
    assert (run / "evaluation.png").exists()


def test_json_names_network_data_and_versions(run, held_out, scored):
    result = scored[1]
    network = result["networks"][0]
    weights = run / "checkpoints" / STEP / "model.safetensors"
    assert (network["source"], network["step"], network["weights"]) == (str(run), 40, str(weights))
    assert network["weights_sha256"] == file_sha256(weights)
    assert (result["data"], result["data_fingerprint"]) == (str(held_out), index.load(held_out).fingerprint)
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (result["precision"], result["processes"]) == ("fp32", 1)


def test_training_found_the_same_centre_error(run, scored):
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [point["eval/centre/top1_error"] for point in points if "eval/centre/top1_error" in point]
    assert len(errors) >= 2
    assert errors[0] == errors[1] == pytest.approx(scored[1]["views"]["centre"]["top1_error_percent"] / 100)


def test_scores_go_to_the_runs_own_wandb_run(run, scored):
    run_id = json.loads((run / "checkpoints" / STEP / "progress.json").read_text())["wandb_id"]
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(folders) >= 2  # training's and the evaluation's
    assert all(name.endswith(f"-{run_id}") for name in folders)
    assert f"  W&B         {run}/wandb/offline-run-" in scored[0]
    shown = [str(path) for path in (run / "wandb").glob("offline-run-*/files/media/**/*.*")]
    best = min(scored[1]["views"], key=lambda view: scored[1]["views"][view]["top1_error_percent"])
    for name in ("table/eval/ten/worst_classes", "table/eval/centre/confusions", f"images/eval/{best}/mistakes"):
        assert any(f"/files/media/{name}" in path for path in shown), (name, shown)


@pytest.mark.slow
def test_best_checkpoint_another_set_and_other_settings(copied, photos, scored):
    words = ["--best", "data.resize_px=80", "--data", photos, "--views", "centre", "--micro-batch", "50"]
    ended = evaluate(copied, *words)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((copied / f"evaluation-{photos.name}-{index.load(photos).fingerprint[:8]}.json").read_text())
    assert result["networks"][0]["preprocessing"]["resize_px"] == 80
    assert (result["data"], result["views"]["centre"]["seen"], [*result["views"]]) == (str(photos), 50, ["centre"])


@pytest.mark.slow
def test_ensemble_of_a_run_a_checkpoint_and_an_export(run, copied, tmp_path):
    """Three times the same network is that network."""
    export = python("-m", "launch.export", run, tmp_path / "net.safetensors")
    assert export.returncode == 0, export.stderr
    words = ["--views", "ten,dense,50@64-80+dense@64", "tracking=none", "--data"]
    own = json.loads((run / "checkpoints" / STEP / "progress.json").read_text())["config"]["data"]["validation"]
    one, three = tmp_path / "one.json", tmp_path / "three.json"
    ended = evaluate(run, *words, own, "--out", one)
    assert ended.returncode == 0, ended.stderr
    sources = [copied, run / "checkpoints" / STEP, tmp_path / "net.safetensors"]
    ended = evaluate(*sources, *words, own, "--out", three)
    assert ended.returncode == 0, ended.stderr
    assert "the average of 3 networks: " in ended.stdout
    one, three = (json.loads(path.read_text()) for path in (one, three))
    assert len({network["weights_sha256"] for network in three["networks"][:2]}) == 1
    for view in one["views"]:
        assert three["views"][view]["correct1"] == one["views"][view]["correct1"]
        assert three["views"][view]["loss"] == pytest.approx(one["views"][view]["loss"], rel=1e-12)


# Mistakes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["--views", "six"],
            "--views: 'six' is no view: 'six' must be one of centre, five, ten, 50, 150, dense",
        ),
        (["--views", "ten,center"], "--views: 'center' is no view: "),
        (["--views", "center"], "joined by a + (150+dense). Did you mean centre?\n"),
        (["--views", ""], "--views: '' is no view"),
        (["--views", "centre,", "ten"], "views are given with commas between them: --views centre,ten"),
        (
            ["--views", "150"],
            "150 looks at a short side of 40 px, below data.crop_px=64. Name larger scales behind an @",
        ),
        (["data.resize_px=40"], "error: command line:\n  data.crop_px=64 must not be more than data.resize_px=40"),
        (["model.width=2"], "can be scored with other data, evaluation, wandb, tracking, train.precision, but not"),
        (["data.area=0.1,1"], "data.area=0.1,1: training alone reads data.area"),
        (["README.md"], "README.md is no file of weights (.safetensors, .pth, .pt, .bin, .tar)"),
        (["data.sclae=2"], "data.sclae=2: data.sclae is no known key"),
        (["daat.crop_px=64"], "daat.crop_px=64: daat.crop_px is no known key. Did you mean data.crop_px?"),
        (["nowhere"], "nowhere does not exist. Give a run folder, a checkpoint, an exported .safetensors file"),
        (["torchvision:alexnet=x.pth"], "torchvision:alexnet=x.pth: there is no file x.pth"),
        (["--save-predictions", "p.txt"], "give a name that ends in .csv or .parquet"),
        (["--classes", "nowhere.txt"], "--classes nowhere.txt cannot be read"),
        (["--classes", "LICENSE"], "--classes LICENSE has 201 names"),
        (["--out", "e.txt"], "--out e.txt: give a name that ends in .json"),
        (["--views", "ten,ten"], "evaluation.views=['ten', 'ten'] must name each view once"),
        (["--micro-batch", "0"], "evaluation.micro_batch=0 must be greater than 0"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
    ],
)
def test_mistake_in_words(run, words, reason):
    assert reason in refused(called(command.main, run, *words))


def test_missing_run_folder(tmp_path):
    text = refused(evaluate(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere does not exist. Give a run folder" in text
    text = refused(called(command.main, tmp_path))
    assert f"{tmp_path} is neither a run nor a checkpoint. Give a run folder" in text
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)
    assert f"{tmp_path} is no run, but holds some: one. Give one of them: {tmp_path}/one" in refused(evaluate(tmp_path))


def test_a_set_is_no_source(run, held_out):
    assert refused(evaluate(run, held_out)).endswith(f"{held_out} is a packed set. To score on it: --data {held_out}\n")


def test_run_without_a_checkpoint(run, tmp_path):
    shutil.copy(run / "config.yaml", tmp_path)
    assert f"{tmp_path} has no checkpoint yet" in refused(evaluate(tmp_path))


@pytest.mark.slow
def test_set_with_some_of_the_classes_and_with_others(run, make_set, tmp_path):
    some = make_set("some", 12, num_classes=3)
    ended = evaluate(run, "--data", some, "--views", "centre", "--out", tmp_path / "e.json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "e.json").read_text())["views"]["centre"]["seen"] == 12
    other = make_set("other", 6, num_classes=3)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"classes": ["class-0", "class-1", "hat"]}))
    text = refused(evaluate(run, "--data", other))
    assert (
        f"{run} has 5 classes (class-0, class-1, class-2, ...), and the set 3 classes, of which 'hat' is none" in text
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_corrupt_checkpoint(copied, name):
    file = copied / "checkpoints" / STEP / name
    file.write_bytes(file.read_bytes()[:-9])
    assert f"{file} is not what was written (its checksum differs): corrupt" in refused(evaluate(copied))


def test_run_that_was_trained_without_validation(copied):
    path = copied / "checkpoints" / STEP / "progress.json"
    facts = json.loads(path.read_text())
    facts["config"]["data"]["validation"] = None
    path.write_text(json.dumps(facts))
    assert f"{copied} was trained without data.validation. Name a packed set: --data" in refused(evaluate(copied))


@pytest.mark.slow
def test_images_that_cannot_be_decoded_are_told_and_too_many_refused(run, make_set):
    rotten = make_set("rotten", 20, broken=[2, 7, 11])
    words = [run, "--views", "centre", "--data", rotten]
    for _ in range(2):  # found, then known from the quarantine
        assert "3 images of" in refused_text(evaluate(*words, "--max-bad-images", "2"))
    ended = evaluate(*words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"17 images of {rotten}")
    assert "in no figure, since they cannot be decoded: 3 images" in ended.stdout


def refused_text(ended: subprocess.CompletedProcess) -> str:
    """The message behind the warnings, and whatever the decoder says."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr[ended.stderr.index("error: ") :]
