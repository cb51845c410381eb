"""What is timed in a turn of `launch.bench step`: our step and its variants, a bare PyTorch loop, the device's limits.

In: a network, the size of a batch. Out: `Turn`s, and how long one takes. All on one batch that stays on the device.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models import alexnet
from models.build import build
from pipeline import engine, optim
from pipeline.bench.contestant import LR
from pipeline.bench.trainers.limit_step import batch_on
from pipeline.bench.trainers.ours import NUM_CLASSES, steps
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.runtime import Runtime

MATRIX = {"cuda": 8192, "cpu": 2048}  # rows of square matrices
COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
BARE, OURS, COMPILED = "bare loop", "ours", "ours, compiled"


def _compile_by_part(built: Any) -> None:
    engine.compile_module(built.module, by_part=True)


def _contiguous_weights(built: Any) -> None:
    built.module.to(memory_format=torch.contiguous_format)


def _throughput_timer(built: Any) -> None:
    built.tput_timer.config.enabled = True


def _response_norm_of_torch(built: Any) -> None:
    for layer in built.module.modules():
        if isinstance(layer, alexnet.ResponseNorm):
            layer.forward = layer.by_torch  # type: ignore[method-assign]


# What is decided for a GPU, undone one at a time.
ALTERNATIVES: dict[str, Callable[[Any], None]] = {
    "ours, compiled by part": _compile_by_part,
    "ours, weights not channels_last": _contiguous_weights,
    "ours, DeepSpeed's throughput timer on": _throughput_timer,
    "ours, response normalisation by torch's operators": _response_norm_of_torch,
}


@dataclass
class Turn:
    """One thing that is timed: `work()` does `amount` of something; rates are amounts a second."""

    work: Callable[[], object]
    amount: float
    times: int = 1  # calls a turn


def limits_of(device: torch.device, precision: torch.dtype) -> dict[str, Turn]:
    """Matrix product in FLOP/s, memory copy in bytes/s (read and written), and to a GPU the copy from the host."""
    side, size = MATRIX[device.type], COPY_BYTES[device.type]
    source = torch.empty(size, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    limits = {
        "matrix product": Turn(_product(side, device, precision), 2.0 * side**3),
        "memory copy": Turn(lambda: target.copy_(source), 2.0 * size),
    }
    if device.type == "cuda":
        host = torch.empty(size, dtype=torch.uint8).pin_memory()
        limits["copy from the host"] = Turn(lambda: target.copy_(host, non_blocking=True), float(size))
    return limits


def _product(side: int, device: torch.device, precision: torch.dtype) -> Callable[[], object]:
    """Of square matrices. On a CPU a convolution of 1 x 1 windows: torch.mm takes MKL, which is half as fast as oneDNN
    on an AMD EPYC, and the network's convolutions would go beyond such a limit."""
    left, right = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    if device.type == "cuda":
        product = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=product)
    pixels, weight = left.view(1, 1, side, side).permute(0, 3, 1, 2), right.view(side, side, 1, 1)

    def convolve() -> torch.Tensor:
        with torch.no_grad():
            return F.conv2d(pixels, weight)

    return convolve


def steps_of(network: str, batch: int, compiled: bool, alternatives: bool, runtime: Runtime) -> dict[str, Turn]:
    """A step of ours and of the bare loop; with `compiled` and `alternatives`, of those too."""
    turns = {
        OURS: Turn(ours(network, batch, False, runtime), batch),
        BARE: Turn(_bare(network, batch, runtime), batch),
    }
    if compiled:
        turns[COMPILED] = Turn(ours(network, batch, True, runtime), batch)
    for name, change in ALTERNATIVES.items() if alternatives else ():
        if "response" in name and network != "alexnet_2012":
            continue
        turns[name] = Turn(ours(network, batch, False, runtime, change), batch)
    return turns


def config_of(network: str, batch: int, compiled: bool) -> Config:
    train = {"global_batch": batch, "compile": compiled}
    return parse({"model": {"name": network}, "optimizer": {"lr": LR}, "train": train}, "benchmark")


def ours(
    network: str, batch: int, compiled: bool, runtime: Runtime, change: Callable[[Any], None] = lambda engine: None
) -> Callable[[], object]:
    config = config_of(network, batch, compiled)
    model = build(network, NUM_CLASSES).to(runtime.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
    change(built)
    stepping = steps(engine.Stepper(built, config, runtime), repeat(batch_on(runtime.device, batch)))
    return lambda: next(stepping)


def _bare(network: str, batch: int, runtime: Runtime) -> Callable[[], object]:
    """The same arithmetic without the engine, the counting of right answers, and the seeding of dropout."""
    config = config_of(network, batch, False)
    model: nn.Module = build(network, NUM_CLASSES).to(runtime.device).train()
    optimizer = optim.build(model, config.optimizer)
    given = batch_on(runtime.device, batch)
    bf16 = config.train.uses_bf16(runtime.on_gpu)

    def step() -> None:
        with torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(given.images).float(), given.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rounds_of(
    limits: dict[str, Turn], steps: Callable[[], dict[str, Turn]], num_rounds: int, min_turn_s: float, runtime: Runtime
) -> Iterator[dict[str, float]]:
    """Warm up, choose how many calls make a turn, then take turns in rotated order. Yields the rates of each round."""
    gc.collect()  # what came before
    if runtime.on_gpu:
        torch.cuda.empty_cache()
    turns = limits | steps()
    for turn in turns.values():
        turn.work()  # compiles, tunes
        turn.times = 1
        turn.times = max(1, round(min_turn_s / min(seconds(turn, runtime) for _ in range(3))))
    names = list(turns)
    for number in range(num_rounds):
        first, rates = number % len(names), {}
        for name in names[first:] + names[:first]:
            turn = turns[name]
            rates[name] = turn.times * turn.amount / seconds(turn, runtime)
        yield {name: rates[name] for name in names}


def seconds(turn: Turn, runtime: Runtime) -> float:
    if runtime.on_gpu:
        torch.cuda.synchronize(runtime.device)
    begin = time.perf_counter()
    for _ in range(turn.times):
        turn.work()
    if runtime.on_gpu:
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - begin
