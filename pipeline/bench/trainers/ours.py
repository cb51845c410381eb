"""Ours: the steps of pipeline.train over a packed set, in any storage form, through the DeepSpeed engine."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import torch

from pipeline import engine, network, optim
from pipeline.bench.contestant import SEED, Feed, Task, enter, versions
from pipeline.bench.loaders.ours import config_of
from pipeline.config import Config
from pipeline.data.index import load
from pipeline.data.loader import Batch, order_of, train_batches
from pipeline.runtime import Runtime
from pipeline.runtime import start as start_runtime
from pipeline.stopwatch import Stopwatch
from pipeline.train import take_step
from pipeline.whereabouts import Whereabouts

NUM_CLASSES = 1000


def start(task: Task) -> Feed:
    config, runtime, stepper = stepper_of(task)
    index = load(task.folder)
    batches = train_batches(
        index,
        config.data,
        order_of(index, config.data, task.batch, SEED),
        rank_info=runtime,
        device=runtime.device,
        micro_steps=1,
        steps=range(0, 10**9),
    )
    return Feed(steps(stepper, batches), 2 * config.data.prefetch + 2, names(), makes_batches=False)


def stepper_of(task: Task) -> tuple[Config, Runtime, engine.Stepper]:
    """As pipeline.train builds it, for a process that lives as long as the contest."""
    config = config_of(task)
    runtime = start_runtime().__enter__()
    model = network.build(config.model, config.data, NUM_CLASSES).to(runtime.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
    return config, runtime, engine.Stepper(built, config, runtime)


def steps(stepper: engine.Stepper, batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
    """The counts of each step."""
    data_wait, nowhere = Stopwatch(stepper.runtime.device), Whereabouts(Path(), 0)
    for step in count():
        yield take_step(stepper, batches, step, NeverStopped(), data_wait, nowhere)  # type: ignore[arg-type]


class NeverStopped:
    """In place of a StopRequest, which would catch the signals that end a benchmark."""

    waiting = nullcontext


def names() -> str:
    return versions("torch", "deepspeed")


if __name__ == "__main__":
    enter(start)
