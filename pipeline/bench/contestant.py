"""What all contestants share: the task, the words they exchange with the driver, and a check of what they deliver.

In: `start(task)` of a contestant, which gives an `Feed`. Out: a process that answers "go N" on its standard input with
{"images": n, "seconds": s} on its standard output, until that input ends. Only the standard library and torch are
imported, since FFCV lives in an environment of its own. See tests/benchmarks/README.md for the rules.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

CROP_PX = 224
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SEED = 0
LR = 1e-4  # of trainers: labels say nothing, so what matters is that no weight gets infinite
# Ends of epochs cost the peers a pause each. The small sets here would make them 400 times as frequent as ImageNet
# does, so a peer with epochs sees its files so many times in one that it is as long as ImageNet's.
EPOCH_IMAGES = 1_281_167


class Task(NamedTuple):
    """Photos in `folder`, `cores` threads or workers, batches on `device` (cpu or cuda); `model` is what trainers
    train; `settings` are key=value words of a config that tell forms of ours apart."""

    folder: Path
    cores: int
    device: str
    batch: int
    model: str
    settings: tuple[str, ...]

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


class Feed(NamedTuple):
    """Endless batches, how many of them may be ready before anybody asks, and the versions of what makes them.

    Limits and trainers yield anything once per batch, since they hand none over: `makes_batches` is False.
    """

    batches: Iterator[Any]
    ahead: int
    versions: str
    makes_batches: bool = True


def enter(start: Callable[[Task], Feed]) -> None:
    """The life of a contestant: make the first batches, say so, then take turns."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers

    def answer(**words) -> None:
        print(json.dumps(words), file=answers, flush=True)

    try:
        task = asked()
        feed = start(task)
        if feed.makes_batches:
            feed = feed._replace(batches=(images.to(task.device, non_blocking=True) for images in feed.batches))
        batch = None
        for _ in range(feed.ahead + 1):
            batch = next(feed.batches)
        if feed.makes_batches:
            check(batch, task)
        answer(versions=feed.versions)
        for line in sys.stdin:
            images, seconds = turn(feed, task, int(line.removeprefix("go ")))
            answer(images=images, seconds=seconds)
    except ModuleNotFoundError as missing:
        answer(failed=f"not installed: {missing}")
    except Exception as error:
        traceback.print_exc()
        answer(failed=said(error))


def said(error: Exception) -> str:
    """What a table has room for; of an error that brings another process's traceback, what that ends with."""
    text = str(error).strip()
    text = text.splitlines()[-1] if "Traceback" in text else f"{type(error).__name__}: {text}"
    return " ".join(text.split())[:300]


def asked() -> Task:
    """The task of the command line, as `words` writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    return Task(args.folder, args.cores, args.device, args.batch, args.model, tuple(args.settings))


def words(task: Task) -> list[str]:
    """The command line of a task."""
    named = {"folder": task.folder.absolute(), "cores": task.cores, "device": task.device, "batch": task.batch}
    return [f"--{name}={value}" for name, value in (named | {"model": task.model}).items()] + [*task.settings]


def turn(feed: Feed, task: Task, num_images: int) -> tuple[int, float]:
    """(images, seconds) of the batches that hold `num_images`, after those that may have been ready."""
    for _ in range(feed.ahead):
        next(feed.batches)
    wait_for_gpu(task)
    num_batches = -(-num_images // task.batch)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(feed.batches)
    wait_for_gpu(task)
    return num_batches * task.batch, time.perf_counter() - start


def wait_for_gpu(task: Task) -> None:
    """Until it has done what it was asked to."""
    if task.on_gpu:
        torch.cuda.synchronize()


def check(images: Any, task: Task) -> None:
    """Raises ValueError unless this is a batch as agreed: float32 [batch, 3, 224, 224] on the device, normalised."""
    if not isinstance(images, torch.Tensor) or images.device.type != task.device or images.dtype != torch.float32:
        raise ValueError(f"delivers {getattr(images, 'dtype', type(images))}, not a float32 tensor on {task.device}")
    if images.shape != (task.batch, 3, CROP_PX, CROP_PX):
        raise ValueError(f"delivers {list(images.shape)}")
    low, high = images.min().item(), images.max().item()
    if not (-2.2 < low < -0.5 < 0.5 < high < 2.7):  # (0 - mean) / std and (1 - mean) / std of black and white
        raise ValueError(f"delivers values in {low:.2f} .. {high:.2f}, which is no normalised batch of photos")


def versions(*packages: str) -> str:
    """The installed packages with their versions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def epoch_of(samples: list) -> list:
    """`samples` so many times that they make an epoch as long as ImageNet's."""
    return samples * -(-EPOCH_IMAGES // len(samples))
