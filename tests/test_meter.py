"""What a logged point says of time: on a clock that only the test moves."""

from types import SimpleNamespace

import pytest
import torch

from pipeline import checkpoint_writer, meter, train
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.run_lock import lock_run
from pipeline.run_plan import prepare
from pipeline.tasks.classification import Classification
from pipeline.tracking import points as keys
from pipeline.whereabouts import Whereabouts


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def meter_of(alone, points: list, wait_s: float, communication_s: float | None) -> meter.Meter:
    watch = None if communication_s is None else SimpleNamespace(take_s=lambda: communication_s)
    made = meter.Meter(
        parse({"train": {"global_batch": 10}}, "test"),
        alone,
        SimpleNamespace(communication=watch, task=Classification(Config())),  # type: ignore[arg-type]
        SimpleNamespace(log=points.append),  # type: ignore[arg-type]
    )
    made.data_wait = SimpleNamespace(take_s=lambda: wait_s)  # type: ignore[assignment]
    return made


COUNTS = torch.tensor([10.0, 4.0, 9.0, 12.0], dtype=torch.float64)


@pytest.mark.parametrize("communication_s", [None, 0.6])
def test_a_step_is_waiting_communication_and_computing(alone, clock, communication_s):
    points: list = []
    one = meter_of(alone, points, 0.2, communication_s)
    for _ in range(2):
        clock.now += 1.5
        one.add(COUNTS)
    one.log(2, 0.5, 0.1)
    [point] = points
    assert point[keys.STEP_S] == pytest.approx(1.5)
    assert point[keys.IMAGES_PER_S] == pytest.approx(10 / 1.5)
    assert point[keys.DATA_WAIT_S] == pytest.approx(0.1)
    assert point.get(keys.COMMUNICATION_S) == (None if communication_s is None else pytest.approx(0.3))
    assert point[keys.COMPUTE_S] == pytest.approx(1.4 if communication_s is None else 1.1)


def test_evaluations_and_checkpoints_are_not_training(alone, photos, held_out, tmp_path, clock, monkeypatch):
    """Each takes an hour on this clock, a step 2 s; and the last step is followed by an evaluation."""
    real, evaluated = {"save": checkpoint_writer.Writer.save, "step": train.take_step, "evaluate": train._evaluate}, []

    def slowly(name: str, seconds: float):
        def work(*args, **options):
            clock.now += seconds
            return real[name](*args, **options)

        return work

    monkeypatch.setattr(checkpoint_writer.Writer, "save", slowly("save", 3600))
    monkeypatch.setattr(train, "take_step", slowly("step", 2))
    hour = slowly("evaluate", 3600)
    monkeypatch.setattr(train, "_evaluate", lambda *args: (evaluated.append(args[0].plan.progress.step), hour(*args)))
    config = parse(
        {
            "run": str(tmp_path / "run"),
            "tracking": "none",
            "data": {"train": str(photos), "validation": str(held_out), "crop_px": 64, "resize_px": 72, "threads": 1},
            "model": {"name": "alexnet", "width": 0.0625},
            "train": {"epochs": 1.4, "global_batch": 10, "log_every_steps": 2, "checkpoint_every_steps": 2},
            "evaluation": {"every_epochs": 0.6},
        },
        "test",
    )
    plan = prepare(config, 1)
    with lock_run(plan, alone):
        train.train(config, plan, alone, Whereabouts(plan.run, 0))
    import json

    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [point for point in logged if keys.STEP_S in point]
    assert [point[keys.STEP_S] for point in steps] == pytest.approx([2.0] * len(steps))
    assert evaluated == [3, 6, 7]  # the last one is not due
    assert [point["step"] for point in logged if "eval/centre/top1_error" in point] == evaluated
