"""`launch.bench step`: what the device gives at most, what a training step makes of it, and what DeepSpeed costs.

In: names of networks, sizes of batches. Out: Markdown tables and figures. In each round there are turns of the matrix
product and the memory copy, then of each network and batch: our step through the engine, the same with torch.compile
and with the engine's other choices undone, and a bare PyTorch loop with the same network, optimizer and precision. All
on one batch that stays on the device.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from models.build import build
from models.summary import summarize
from pipeline.bench import turns
from pipeline.bench.arguments import require_count, require_network
from pipeline.bench.contestant import CROP_PX
from pipeline.bench.race import NO_ROUND
from pipeline.bench.rows import Row, spread
from pipeline.bench.trainers.ours import NUM_CLASSES
from pipeline.bench.turns import ALTERNATIVES, BARE, COMPILED, OURS
from pipeline.errors import UserError
from pipeline.runtime import start

NETWORKS = ("alexnet_2012", "alexnet", "vgg16", "vgg19")
BATCHES_ON_GPU = {"alexnet": (128, 256, 512, 1024), "vgg": (32, 64, 128, 256)}
BATCHES_ON_CPU = {"alexnet": (32,), "vgg": (4,)}


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


def measure(settings: Steps, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the best batch of each network, and all figures; after an interrupt, of the whole rounds before."""
    rows: list[Row] = []
    report: dict[str, Any] = {"wanted": asdict(settings), "networks": {}, "cut": ""}
    macs_of = {
        name: sum(row.num_macs for row in summarize(build(name, NUM_CLASSES), CROP_PX)) for name in settings.networks
    }
    with start() as runtime:
        precision = torch.bfloat16 if runtime.on_gpu else torch.float32
        limits = turns.limits_of(runtime.device, precision)
        for network in settings.networks:
            if report["cut"]:
                say(f"{network}: {NO_ROUND}")
                continue
            by_batch: dict[int, dict[str, list[float]]] = {}
            for batch in settings.batches_of(network, runtime.on_gpu):
                what, rounds = f"{network}, {batch} images", []
                if report["cut"]:
                    say(f"{what}: {NO_ROUND}")
                    continue
                try:
                    steps = partial(turns.steps_of, network, batch, settings.compile, settings.alternatives, runtime)
                    for rates in turns.rounds_of(limits, steps, settings.rounds, settings.min_turn_s, runtime):
                        rounds.append(rates)
                except torch.OutOfMemoryError:
                    say(f"{what}: no room on this device")
                    continue
                except KeyboardInterrupt:
                    report["cut"] = f"{what}: cut after {len(rounds)} of {settings.rounds} rounds"
                say(report["cut"] or f"{what}: done")
                if rounds:
                    by_batch[batch] = {name: [rates[name] for rates in rounds] for name in rounds[0]}
            if not by_batch:
                continue
            macs = macs_of[network]
            report["networks"][network] = {"macs": macs, "rates": by_batch}
            say(f"\n{table(network, macs, by_batch)}\n")
            rows += rows_of(network, macs, by_batch)
    if not rows and not report["cut"]:
        raise UserError("no network had room on this device. Give smaller --batches")
    return rows, report


def rows_of(network: str, macs: int, by_batch: dict[int, dict[str, list[float]]]) -> list[Row]:
    """At the best batch size: the step's arithmetic against a matrix product's, and our step against the bare loop."""
    batch = max(by_batch, key=lambda size: statistics.median(by_batch[size][OURS]))
    of_best, rows = by_batch[batch], []
    for name in (OURS, COMPILED):
        if name in of_best:
            what, operations = f"{network}, {batch} images: {name}", [6 * macs * rate for rate in of_best[name]]
            rows.append(Row("step", what, operations, {"matrix product": of_best["matrix product"]}, "FLOP/s"))
    rows.append(Row("engine", f"{network}, {batch} images: {OURS}", of_best[OURS], {BARE: of_best[BARE]}))
    return rows


def table(network: str, macs: int, by_batch: dict[int, dict[str, list[float]]]) -> str:
    """Markdown: images/s, and the arithmetic that is: 6 FLOP a multiply-add, 2 forward and 4 backward."""
    lines = [
        f"| {network} | images/s | of the bare loop | TFLOP/s | of the matrix product | matrix TFLOP/s | copy GB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch, rates in by_batch.items():
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
