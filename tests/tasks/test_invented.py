"""A recipe, a task, a tracker and a network that this package does not know, named in a config: they train."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import agreement
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.data.geometry import Crops
from pipeline.data.index import load
from pipeline.data.loader import order_of, train_batches
from pipeline.errors import UserError
from pipeline.evaluation import classifier
from pipeline.run_lock import lock_run
from pipeline.run_plan import prepare
from pipeline.runtime import RankInfo
from pipeline.train import train
from pipeline.whereabouts import Whereabouts
from tests.tasks import invented
from tests.tasks.invented import Mirrored

HERE = "tests.tasks.invented"


@pytest.fixture
def tree(photos, held_out, tmp_path) -> dict:
    data = {"train": str(photos), "validation": str(held_out), "crop_px": 24, "resize_px": 32, "threads": 1}
    return {
        "run": str(tmp_path / "run"),
        "task": f"{HERE}:Mirrored",
        "tracking": f"{HERE}:Diary",
        "data": {**data, "recipe": f"{HERE}:corner", "mean": [0.0, 0, 0], "std": [1.0, 1, 1]},
        "model": {"name": f"{HERE}:sized"},
        "optimizer": {"lr": 0.01},
        "schedule": {"kind": "plateau", "patience": 1},
        "train": {"global_batch": 10, "epochs": 3, "log_every_steps": 5},
    }


def test_they_train_and_are_scored(tree, alone):
    config = parse(tree, "test")
    plan = prepare(config, 1)
    with lock_run(plan, alone):
        train(config, plan, alone, Whereabouts(plan.run, 0))
    points = [json.loads(line) for line in (plan.run / "metrics.jsonl").read_text().splitlines()]
    assert (plan.run / "diary.txt").read_text() == "".join(f"{point}\n" for point in points)
    errors = [point["eval/both/mirrored_error"] for point in points if "eval/both/mirrored_error" in point]
    assert len(errors) == 3
    assert all(0 <= point["train/mirrored_error"] <= 1 for point in points if "train/loss" in point)
    progress = json.loads((plan.run / "checkpoints" / "step-00000015" / "progress.json").read_text())
    assert progress["errors"] == errors
    assert progress["best_error"] == min(errors)
    assert progress["best_step"] == 5 * (errors.index(min(errors)) + 1)


def test_they_are_not_scored_as_classifiers(tree, alone):
    config = parse(tree | {"train": {"global_batch": 10, "epochs": 1}}, "test")
    plan = prepare(config, 1)
    with lock_run(plan, alone):
        train(config, plan, alone, Whereabouts(plan.run, 0))
    with pytest.raises(UserError, match=rf"{plan.run} was trained for task={HERE}:Mirrored.*{plan.run}/metrics.jsonl"):
        classifier.read(str(plan.run), [])


@pytest.mark.parametrize("headline", [-0.1, 1.5, float("nan")])
def test_a_headline_that_no_checkpoint_could_hold_ends_the_run(tree, alone, monkeypatch, headline):
    config = parse(tree | {"train": {"global_batch": 10, "epochs": 1}}, "test")
    plan = prepare(config, 1)
    monkeypatch.setattr(Mirrored, "headline", lambda self, scores: headline)
    with (
        pytest.raises(UserError, match=f"its headline of step 5 is {headline}, which must be in 0..1"),
        lock_run(plan, alone),
    ):
        train(config, plan, alone, Whereabouts(plan.run, 0))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, 999), (0, -3, 2, 2)])
def test_a_window_outside_of_its_image_is_told(tree, photos, monkeypatch, box):
    def outside(heights, widths, ids, seed, epoch, *, crop_px, pca):
        top, left, height, width = (np.full(len(ids), edge) for edge in box)
        return Crops(top, left, height, width, ids < 0, np.zeros((len(ids), 3)))

    monkeypatch.setattr(invented, "corner", outside)
    index, data = load(photos), parse(tree, "test").data
    how: dict = {
        "rank_info": RankInfo(0, 1, 0, 1),
        "device": torch.device("cpu"),
        "micro_steps": 1,
        "task": Mirrored(Config()),
    }
    with pytest.raises(
        UserError, match=rf"data.recipe={HERE}:corner: the window of sample \d+, {box[3]} x {box[2]} px"
    ):
        next(train_batches(index, data, order_of(index, data, 10, seed=0), steps=range(1), **how))


@pytest.mark.parametrize(("fields", "said"), [(("boxes",), "has no boxes"), (("boxen",), "there is no field 'boxen'")])
def test_fields_that_a_set_lacks_are_told_before_a_gpu_is_touched(tree, monkeypatch, fields, said):
    monkeypatch.setattr(Mirrored, "fields", fields)
    with pytest.raises(UserError, match=said):
        prepare(parse(tree, "test"), 1)


def test_other_code_on_another_machine_is_told(tree, alone):
    config = parse(tree, "test")
    plan = prepare(config, 1)
    facts = agreement.of_training(config, plan, alone)
    file = Path(__file__).with_name("invented.py")
    for key in ("task", "data.recipe"):
        assert facts[f"{key} (SHA-256 of its file)"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_targets_follow_the_placement_and_colours_the_recipe(tree, photos):
    index, data = load(photos), parse(tree, "test").data
    order = order_of(index, data, 10, seed=0)
    how: dict = {
        "rank_info": RankInfo(0, 1, 0, 1),
        "device": torch.device("cpu"),
        "micro_steps": 1,
        "task": Mirrored(Config()),
    }
    for step, batch in enumerate(train_batches(index, data, order, steps=range(0, 7), **how)):
        mirrored = (batch.ids + step // 5) % 2 == 1
        assert batch.targets.tolist() == mirrored.astype(float).tolist()
        red, green = (batch.images[:, channel].amax(dim=(1, 2)) for channel in (0, 1))
        assert (red <= 0.75 + 1e-6).all()
        assert (green > 0).all()
    assert np.array_equal(order.batch(6), batch.ids)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("task", "clasification", "Did you mean classification?"),
        ("task", "tests.tasks.nowhere:Task", "there is no module tests.tasks.nowhere"),
        ("task", f"{HERE}:Missing", f"module {HERE} has no Missing"),
        ("task", f"{HERE}:sized", "sized lacks fields, num_counts, targets, loss, counts, scores, require, evaluate,"),
        ("tracking", "wanb", "Did you mean wandb?"),
        ("tracking", f"{HERE}:missing", f"module {HERE} has no missing"),
        ("recipe", "inceptoin", "Did you mean inception?"),
        ("recipe", f"{HERE}:missing", f"module {HERE} has no missing"),
    ],
)
def test_what_is_not_there_is_refused_before_a_gpu_is_touched(tree, key, value, said):
    (tree["data"] if key == "recipe" else tree)[key] = value
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as refused:
        prepare(parse(tree, "test"), 1)
    assert value in str(refused.value)
