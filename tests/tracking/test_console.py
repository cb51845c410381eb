"""The console of a run in a file: a line a point; the time left is told when it is known."""

import pytest

from pipeline.tracking import points as keys
from pipeline.tracking.console import Console


def point(step: int, step_s: float) -> dict[str, float]:
    return {
        keys.STEP: step,
        keys.EPOCH: 0.5,
        keys.TRAIN_LOSS: 1.25,
        keys.TRAIN_TOP1: 0.5,
        keys.LEARNING_RATE: 0.01,
        keys.IMAGES_PER_S: 100.0,
        keys.DATA_WAIT_S: step_s / 10,
        keys.STEP_S: step_s,
    }


def test_no_time_left_before_it_is_known(capsys):
    """The first steps compile, fill caches and start threads: 51 s a step, then a third of a second."""
    console = Console(0, 100)
    console.log(point(1, 51.0))
    console.log(point(10, 1 / 3))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1/100  epoch 0.50  loss 1.250")
    assert "left" not in first
    assert second.endswith("left 0:00:30")


@pytest.mark.parametrize("of_five", [None, 0.125])
def test_top5_where_there_is_one(capsys, of_five):
    scores = {"eval/ten/top1_error": 0.25} | ({} if of_five is None else {"eval/ten/top5_error": of_five})
    Console(0, 100).log({keys.STEP: 5, **scores})
    expected = "step 5  validation  ten: top-1 error 25.00%" + (", top-5 12.50%" if of_five else "")
    assert capsys.readouterr().out == expected + "\n"


def test_scores_of_any_task_are_told(capsys):
    console = Console(0, 100)
    console.log(
        {keys.STEP: 5, "eval/centre/top1_error": 0.1234, "eval/centre/top5_error": 0.0123, "eval/centre/loss": 2}
    )
    console.log({keys.STEP: 6, "eval/ten/top1_error": 0.5, "eval/all/mean_error": 0.25})
    told = point(7, 1.0)
    del told[keys.TRAIN_TOP1]
    console.log(told | {"train/mirrored_error": 0.125})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "step 5  validation  centre: top-1 error 12.34%, top-5 1.23%"
    assert second == "step 6  validation  ten: top-1 error 50.00%  all: mean error 25.00%"
    assert third.startswith("step 7/100  epoch 0.50  loss 1.250  mirrored error 12.5%  lr 0.01  100 img/s")
