"""`launch.bench step`: what the device gives at most, what a training step makes of it, and what DeepSpeed costs.

In: names of networks, sizes of batches. Out: Markdown tables and figures. In each round there are turns of the matrix
product and the memory copy, then of each network and batch: our step through the engine, the same with torch.compile
and with the engine's other choices undone, and a bare PyTorch loop with the same network, optimizer and precision. All
on one batch that stays on the device.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models import alexnet
from models.build import build
from models.summary import summarize
from pipeline import engine, optim
from pipeline.config import Config, parse
from pipeline.errors import UserError
from pipeline.runtime import Runtime, start
from tests.benchmarks.asked import require_count, require_network
from tests.benchmarks.contest import CROP_PX, LR
from tests.benchmarks.rounds import NO_ROUND
from tests.benchmarks.rows import Row, spread
from tests.benchmarks.trainers.limit_step import batch_on
from tests.benchmarks.trainers.ours import NUM_CLASSES, steps

NETWORKS = ("alexnet_2012", "alexnet", "vgg16", "vgg19")
BATCHES_ON_GPU = {"alexnet": (128, 256, 512, 1024), "vgg": (32, 64, 128, 256)}
BATCHES_ON_CPU = {"alexnet": (32,), "vgg": (4,)}
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


@dataclass(frozen=True)
class Steps:
    """What the command line asks for; without `batches`, what suits the device."""

    networks: tuple[str, ...] = NETWORKS
    batches: tuple[int, ...] = ()
    rounds: int = 5
    min_turn_s: float = 1.0
    compile: bool = False
    alternatives: bool = False

    def __post_init__(self) -> None:
        for name in self.networks:
            require_network("--networks", name)
        require_count("--rounds", self.rounds)
        require_count("--batches", *self.batches)

    def batches_of(self, network: str, on_gpu: bool) -> tuple[int, ...]:
        usual = BATCHES_ON_GPU if on_gpu else BATCHES_ON_CPU
        return self.batches or usual["vgg" if "vgg" in network else "alexnet"]


@dataclass
class Turn:
    """One thing that is timed: `work()` does `amount` of something; rates are amounts a second."""

    work: Callable[[], object]
    amount: float
    times: int = 1  # calls a turn


def measure(wanted: Steps, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the best batch of each network, and all figures; after an interrupt, of the whole rounds before."""
    rows: list[Row] = []
    facts: dict[str, Any] = {"wanted": asdict(wanted), "networks": {}, "cut": ""}
    macs_of = {
        name: sum(row.num_macs for row in summarize(build(name, NUM_CLASSES), CROP_PX)) for name in wanted.networks
    }
    with start() as runtime:
        precision = torch.bfloat16 if runtime.on_gpu else torch.float32
        limits = {name: Turn(*what) for name, what in _limits(runtime.device, precision).items()}
        for network in wanted.networks:
            if facts["cut"]:
                say(f"{network}: {NO_ROUND}")
                continue
            found: dict[int, dict[str, list[float]]] = {}
            for batch in wanted.batches_of(network, runtime.on_gpu):
                what, rounds = f"{network}, {batch} images", []
                if facts["cut"]:
                    say(f"{what}: {NO_ROUND}")
                    continue
                try:
                    for rates in _race(limits, network, batch, wanted, runtime):
                        rounds.append(rates)
                except torch.OutOfMemoryError:
                    say(f"{what}: no room on this device")
                    continue
                except KeyboardInterrupt:
                    facts["cut"] = f"{what}: cut after {len(rounds)} of {wanted.rounds} rounds"
                say(facts["cut"] or f"{what}: done")
                if rounds:
                    found[batch] = {name: [rates[name] for rates in rounds] for name in rounds[0]}
            if not found:
                continue
            macs = macs_of[network]
            facts["networks"][network] = {"macs": macs, "rates": found}
            say(f"\n{table(network, macs, found)}\n")
            rows += rows_of(network, macs, found)
    if not rows and not facts["cut"]:
        raise UserError("no network had room on this device. Give smaller --batches")
    return rows, facts


def rows_of(network: str, macs: int, found: dict[int, dict[str, list[float]]]) -> list[Row]:
    """At the best batch size: the step's arithmetic against a matrix product's, and our step against the bare loop."""
    batch = max(found, key=lambda size: statistics.median(found[size][OURS]))
    of_best, rows = found[batch], []
    for name in (OURS, COMPILED):
        if name in of_best:
            what, operations = f"{network}, {batch} images: {name}", [6 * macs * rate for rate in of_best[name]]
            rows.append(Row("step", what, operations, {"matrix product": of_best["matrix product"]}, "FLOP/s"))
    rows.append(Row("engine", f"{network}, {batch} images: {OURS}", of_best[OURS], {BARE: of_best[BARE]}))
    return rows


def table(network: str, macs: int, found: dict[int, dict[str, list[float]]]) -> str:
    """Markdown: images/s, and the arithmetic that is: 6 FLOP a multiply-add, 2 forward and 4 backward."""
    lines = [
        f"| {network} | images/s | of the bare loop | TFLOP/s | of the matrix product | matrix TFLOP/s | copy GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, rates in found.items():
        product = spread([rate / 1e12 for rate in rates["matrix product"]], ".3g")
        copy = spread([rate / 1e9 for rate in rates["memory copy"]], ".3g")
        for name in rates:
            if name not in (OURS, COMPILED, BARE, *ALTERNATIVES):
                continue  # a limit
            ratios = [rate / bare for rate, bare in zip(rates[name], rates[BARE], strict=True)]
            shares = [6 * macs * rate / most for rate, most in zip(rates[name], rates["matrix product"], strict=True)]
            cells = [spread(rates[name], ",.1f"), spread(ratios, ".3f")]
            cells += [f"{6 * macs * statistics.median(rates[name]) / 1e12:.3g}", spread(shares, ".2f"), product, copy]
            lines.append(f"| {batch} images, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _limits(device: torch.device, precision: torch.dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """Matrix product in FLOP/s, memory copy in bytes/s (read and written), and to a GPU the copy from the host."""
    side, size = MATRIX[device.type], COPY_BYTES[device.type]
    source = torch.empty(size, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    limits: dict[str, tuple[Callable[[], object], float]] = {
        "matrix product": (_product(side, device, precision), 2.0 * side**3),
        "memory copy": (lambda: target.copy_(source), 2.0 * size),
    }
    if device.type == "cuda":
        host = torch.empty(size, dtype=torch.uint8).pin_memory()
        limits["copy from the host"] = (lambda: target.copy_(host, non_blocking=True), float(size))
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


def _turns(network: str, batch: int, wanted: Steps, runtime: Runtime) -> dict[str, Turn]:
    """A step of each kind."""
    turns = {
        OURS: Turn(_ours(network, batch, False, runtime), batch),
        BARE: Turn(_bare(network, batch, runtime), batch),
    }
    if wanted.compile:
        turns[COMPILED] = Turn(_ours(network, batch, True, runtime), batch)
    for name, change in ALTERNATIVES.items() if wanted.alternatives else ():
        if "response" in name and network != "alexnet_2012":
            continue
        turns[name] = Turn(_ours(network, batch, False, runtime, change), batch)
    return turns


def _config(network: str, batch: int, compiled: bool) -> Config:
    train = {"global_batch": batch, "compile": compiled}
    return parse({"model": {"name": network}, "optimizer": {"lr": LR}, "train": train}, "benchmark")


def _ours(
    network: str, batch: int, compiled: bool, runtime: Runtime, change: Callable[[Any], None] = lambda engine: None
) -> Callable[[], object]:
    config = _config(network, batch, compiled)
    model = build(network, NUM_CLASSES).to(runtime.device).train()
    built = engine.build(model, optim.build(model, config.optimizer), config, runtime)
    change(built)
    stepping = steps(engine.Stepper(built, config, runtime), repeat(batch_on(runtime.device, batch)))
    return lambda: next(stepping)


def _bare(network: str, batch: int, runtime: Runtime) -> Callable[[], object]:
    """The same arithmetic without the engine, the counting of right answers, and the seeding of dropout."""
    config = _config(network, batch, False)
    model: nn.Module = build(network, NUM_CLASSES).to(runtime.device).train()
    optimizer = optim.build(model, config.optimizer)
    given = batch_on(runtime.device, batch)
    bf16 = engine.uses_bf16(config, runtime.on_gpu)

    def step() -> None:
        with torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(given.images).float(), given.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _race(
    limits: dict[str, Turn], network: str, batch: int, wanted: Steps, runtime: Runtime
) -> Iterator[dict[str, float]]:
    """Warm up, choose how many calls make a turn, then take turns in rotated order. Yields the rates of each round."""
    gc.collect()  # what came before
    if runtime.on_gpu:
        torch.cuda.empty_cache()
    turns = limits | _turns(network, batch, wanted, runtime)
    for turn in turns.values():
        turn.work()  # compiles, tunes
        turn.times = 1
        turn.times = max(1, round(wanted.min_turn_s / min(_seconds(turn, runtime) for _ in range(3))))
    names = list(turns)
    for number in range(wanted.rounds):
        first, rates = number % len(names), {}
        for name in names[first:] + names[:first]:
            turn = turns[name]
            rates[name] = turn.times * turn.amount / _seconds(turn, runtime)
        yield {name: rates[name] for name in names}


def _seconds(turn: Turn, runtime: Runtime) -> float:
    if runtime.on_gpu:
        torch.cuda.synchronize(runtime.device)
    begin = time.perf_counter()
    for _ in range(turn.times):
        turn.work()
    if runtime.on_gpu:
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - begin
