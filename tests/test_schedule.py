"""The learning rate against values worked out by hand: 10 steps an epoch, 100 steps, peak 0.4."""

import pytest

from pipeline.config import Schedule
from pipeline.schedule import drops, learning_rate


def at(step: int, errors=(), steps_per_epoch=10, total_steps=100, **settings) -> float:
    return learning_rate(
        Schedule(**settings), 0.4, step, steps_per_epoch=steps_per_epoch, total_steps=total_steps, errors=errors
    )


STEP = {"kind": "step", "every_epochs": 3}
MULTISTEP = {"kind": "multistep", "milestones": (3, 5.5), "factor": 0.5}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant"}, {0: 0.4, 50: 0.4, 99: 0.4}),
        (STEP, {0: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 99: 0.0004}),
        (STEP | {"factor": 0.5}, {29: 0.4, 30: 0.2, 90: 0.05}),
        (MULTISTEP, {29: 0.4, 30: 0.2, 54: 0.2, 55: 0.1, 99: 0.1}),
        ({"kind": "cosine"}, {0: 0.4, 25: 0.3414213562, 50: 0.2, 75: 0.0585786438, 100: 0.0}),
        ({"kind": "cosine", "final_lr": 0.1}, {0: 0.4, 50: 0.25, 100: 0.1}),
        ({"kind": "polynomial"}, {0: 0.4, 50: 0.1, 75: 0.025, 100: 0.0}),
        ({"kind": "polynomial", "power": 1}, {0: 0.4, 25: 0.3, 75: 0.1}),
        ({"kind": "polynomial", "final_lr": 0.1}, {0: 0.4, 50: 0.175, 100: 0.1}),
    ],
)
def test_kind(settings, expected):
    assert {step: at(step, **settings) for step in expected} == pytest.approx(expected, rel=1e-8, abs=1e-12)


WARMUP = {"warmup_epochs": 2}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant"}, {0: 0.02, 1: 0.04, 9: 0.2, 19: 0.4, 20: 0.4}),
        ({"kind": "cosine"}, {0: 0.02, 20: 0.4, 60: 0.2, 100: 0.0}),  # the cosine spans the 80 steps after it
        ({"kind": "polynomial"}, {19: 0.4, 20: 0.4, 60: 0.1}),
        (STEP, {19: 0.4, 29: 0.4, 30: 0.04}),  # epochs count from the start of training
        (MULTISTEP, {0: 0.02, 29: 0.4, 30: 0.2}),
        ({"kind": "constant", "warmup_epochs": 0.25}, {0: 0.2, 1: 0.4, 2: 0.4}),
        ({"kind": "constant", "warmup_epochs": 0.01}, {0: 0.4}),  # shorter than a step: none
    ],
)
def test_warmup_comes_first(settings, expected):
    assert {step: at(step, **(WARMUP | settings)) for step in expected} == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "step", "multistep", "cosine", "polynomial"])
def test_learning_rate_depends_on_nothing_but_the_step(kind):
    settings = {"kind": kind, "every_epochs": 2, "milestones": (4,), "warmup_epochs": 1}
    forwards = [at(step, **settings) for step in range(100)]
    resumed = [at(step, **settings) for step in range(99, -1, -1)][::-1]
    assert forwards == resumed
    assert forwards == [at(step, errors=[0.5] * 40, **settings) for step in range(100)]


@pytest.mark.parametrize(("every_epochs", "steps_per_epoch", "step", "count"), [(0.2, 10, 6, 3), (0.1, 100, 30, 3)])
def test_parts_of_an_epoch_drop_on_their_step(every_epochs, steps_per_epoch, step, count):
    lr = at(step, kind="step", every_epochs=every_epochs, factor=0.5, steps_per_epoch=steps_per_epoch)
    assert lr == pytest.approx(0.4 * 0.5**count)


# Plateau


@pytest.mark.parametrize(
    ("errors", "patience", "count"),
    [
        ([], 2, 0),
        ([0.9, 0.8, 0.7, 0.6], 1, 0),
        ([0.5, 0.5], 2, 0),
        ([0.5, 0.5, 0.5], 2, 1),  # as good as the best is not better
        ([0.5, 0.6, 0.4, 0.5], 2, 0),  # a better one begins the count anew
        ([0.5, 0.6, 0.4, 0.5, 0.4], 2, 1),
        ([0.5, 0.6, 0.6, 0.6], 2, 1),  # and so does a drop
        ([0.5, 0.6, 0.6, 0.6, 0.6], 2, 2),
        ([0.3, 0.6, 0.5, 0.4], 3, 1),  # better than the one before, not than the best
        ([0.3, 0.4], 1, 1),
    ],
)
def test_drops_of_a_history(errors, patience, count):
    assert drops(errors, patience) == count


@pytest.mark.parametrize(
    ("num_evaluations", "expected"), [(2, 0.4), (3, 0.2), (5, 0.1), (7, 0.05), (9, 0.05), (99, 0.05)]
)
def test_plateau_drops_at_most_max_drops_times(num_evaluations, expected):
    settings = {"kind": "plateau", "patience": 2, "factor": 0.5, "max_drops": 3}
    assert at(50, errors=[0.5] * num_evaluations, **settings) == pytest.approx(expected)


def test_plateau_waits_for_the_warmup():
    settings = {"kind": "plateau", "patience": 1, "factor": 0.5, "warmup_epochs": 2}
    assert at(9, errors=[0.5, 0.6], **settings) == pytest.approx(0.2)
    assert at(20, errors=[0.5, 0.6], **settings) == pytest.approx(0.2)
    assert at(20, errors=[0.5], **settings) == pytest.approx(0.4)
