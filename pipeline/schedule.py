"""The learning rate as a function of the step, and of the evaluations so far for `plateau`. Set in one place, the loop.

In: the config's schedule, a step. Out: a float. Nothing is carried along, so a resumed run has the learning rate that
an uninterrupted one has, by construction.
"""

import math
from collections.abc import Sequence

from pipeline.config import Schedule


def learning_rate(
    config: Schedule,
    peak_lr: float,
    step: int,
    *,
    steps_per_epoch: int,
    total_steps: int,
    errors: Sequence[float] = (),
) -> float:
    """The learning rate of `step` (0, 1, ...); `errors` are the task's headlines of all
    validations so far, oldest first."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak_lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)  # share of the steps after the warmup
    match config.kind:
        case "constant":
            return peak_lr
        case "step":
            return peak_lr * config.factor ** (step // max(1, round(config.every_epochs * steps_per_epoch)))
        case "multistep":
            return peak_lr * config.factor ** sum(step >= round(m * steps_per_epoch) for m in config.milestones)
        case "cosine":
            return config.final_lr + (peak_lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        case "polynomial":
            return config.final_lr + (peak_lr - config.final_lr) * (1 - done) ** config.power
        case "plateau":
            return peak_lr * config.factor ** min(config.max_drops, drops(errors, config.patience))
    raise AssertionError(config.kind)


def drops(errors: Sequence[float], patience: int) -> int:
    """How often `patience` evaluations in a row brought no error below the best before them."""
    best, stalled, count = math.inf, 0, 0
    for error in errors:
        if error < best:
            best, stalled = error, 0
        else:
            stalled += 1
        if stalled == patience:
            count, stalled = count + 1, 0
    return count
