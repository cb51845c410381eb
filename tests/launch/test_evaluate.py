"""python -m launch.evaluate on a run of tiny photos: the counts are right, and every mistake is one message."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torchvision.transforms import TenCrop

from models.build import build
from pipeline.config import load
from pipeline.data import index
from pipeline.data.loader import eval_batches
from pipeline.runtime import Place
from tests.conftest import refused

ROOT = Path(__file__).parents[2]
STEP = "step-00000040"


def python(*words: str | Path) -> subprocess.CompletedProcess:
    command, environment = [sys.executable, *map(str, words)], os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


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
    """What was printed, and evaluation.json, of all three views."""
    ended = evaluate(run, "--views", "centre,five,ten")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, json.loads((run / "evaluation.json").read_text())


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copied")


def counted_slowly(run: Path, data: Path, crops: slice | list[int]) -> dict:
    """Scores of the mean softmax over some of torchvision's ten crops, one image at a time."""
    config, found = load(run / "config.yaml"), index.load(data)
    model = build(config.model.name, 5, **config.model.settings(), image_px=64).eval()
    model.load_state_dict(load_file(run / "checkpoints" / STEP / "model.safetensors"))
    seen = correct1 = correct5 = 0
    loss = 0.0
    cpu = torch.device("cpu")
    for batch in eval_batches(found, config.data, place=Place(0, 1, 0, 1), device=cpu, micro_batch=1):
        with torch.inference_mode():
            ten = torch.cat(TenCrop(64)(batch.images))
            probabilities = model(ten[crops]).softmax(dim=1).mean(dim=0)
        label = int(found.label[seen])
        rank = int((probabilities > probabilities[label]).sum())
        seen, correct1, correct5 = seen + 1, correct1 + (rank < 1), correct5 + (rank < 5)
        loss += float(F.nll_loss(probabilities.log()[None], torch.tensor([label])))
    return {"seen": seen, "correct1": correct1, "correct5": correct5, "loss": loss / seen}


@pytest.mark.parametrize(("view", "crops"), [("centre", [4]), ("five", slice(5)), ("ten", slice(10))])
def test_counts_equal_a_slow_count(run, held_out, scored, view, crops):
    found, expected = scored[1]["scores"][view], counted_slowly(run, held_out, crops)
    assert found["seen"] == 23
    assert 0 < found["correct1"] < 23  # neither all nor nothing, or the count would prove little
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["top1_error"] == pytest.approx(1 - expected["correct1"] / 23)
    assert found["top5_error"] == 0


def test_table_shows_percent(run, scored):
    printed, result = scored
    lines = printed.splitlines()
    assert lines[0].startswith("23 images of ")
    assert lines[0].endswith(", checkpoint of step 40")
    rows = {line.split()[0]: line.split()[1:] for line in lines if "%" in line}
    assert rows == {
        view: [f"{score['top1_error']:.2%}", f"{score['top5_error']:.2%}", f"{score['loss']:.3f}"]
        for view, score in result["scores"].items()
    }
    assert f"  checkpoint  {run}/checkpoints/{STEP}" in lines


def test_json_names_checkpoint_data_and_versions(run, held_out, scored):
    result = scored[1]
    assert (result["checkpoint"], result["step"]) == (f"{run}/checkpoints/{STEP}", 40)
    assert (result["data"], result["data_fingerprint"]) == (str(held_out), index.load(held_out).fingerprint)
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_training_found_the_same_centre_error(run, scored):
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [point["eval/centre/top1_error"] for point in points if "eval/centre/top1_error" in point]
    assert len(errors) >= 2
    assert errors[0] == errors[1] == scored[1]["scores"]["centre"]["top1_error"]


def test_scores_go_to_the_runs_own_wandb_run(run, scored):
    run_id = json.loads((run / "checkpoints" / STEP / "progress.json").read_text())["wandb_id"]
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len(folders) >= 2  # training's and the evaluation's
    assert all(name.endswith(f"-{run_id}") for name in folders)
    assert f"  W&B         {run}/wandb/offline-run-" in scored[0]


def test_checkpoint_folder_best_and_another_set(copied, photos, scored):
    words = ["--best", "--data", photos, "--views", "centre", "--micro-batch", "50"]
    ended = evaluate(copied, *words)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((copied / f"evaluation-{photos.name}.json").read_text())
    assert result["checkpoint"] == f"{copied}/checkpoints/{STEP}"
    assert (result["data"], result["scores"]["centre"]["seen"], [*result["scores"]]) == (str(photos), 50, ["centre"])


# Mistakes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--views", "six"], "evaluation.views.0='six' must be 'centre', 'five' or 'ten'"),
        (["--views", ""], "evaluation.views.0='' must be 'centre', 'five' or 'ten'"),
        (["--views", "ten,ten"], "evaluation.views=['ten', 'ten'] must name each view once"),
        (["--micro-batch", "0"], "evaluation.micro_batch=0 must be greater than 0"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
    ],
)
def test_mistake_in_words(run, words, reason):
    assert reason in refused(evaluate(run, *words))


def test_missing_run_folder(tmp_path):
    text = refused(evaluate(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere is neither a run nor a checkpoint. Give a run folder" in text


def test_run_without_a_checkpoint(run, tmp_path):
    shutil.copy(run / "config.yaml", tmp_path)
    assert f"{tmp_path} has no checkpoint yet" in refused(evaluate(tmp_path))


def test_set_with_other_classes(run, make_set):
    other = make_set("other", 12, num_classes=3)
    text = refused(evaluate(run, "--data", other))
    assert f"{run}/checkpoints/{STEP} knows 5 classes (class-0, class-1, class-2, ...), but {other} has 3" in text


@pytest.mark.parametrize("name", ["model.safetensors", "engine/mp_rank_00_model_states.pt"])
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


def test_images_that_cannot_be_decoded_are_told_and_too_many_refused(run, make_set):
    rotten = make_set("rotten", 20, broken=[2, 7, 11])
    words = [run, "--views", "centre", "--data", rotten]
    for _ in range(2):  # found, then known from the quarantine
        assert "3 images of" in refused_text(evaluate(*words, "--max-bad-images", "2"))
    ended = evaluate(*words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"17 images of {rotten}")
    assert "3 more images could not be decoded and are in no figure" in ended.stdout


def refused_text(ended: subprocess.CompletedProcess) -> str:
    """The message behind the warnings, and whatever the decoder says."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr[ended.stderr.index("error: ") :]
