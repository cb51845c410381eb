"""`launch.bench evaluate`: images/s of each view, against what the network alone and decoding alone would give.

In: a packed set, a network. Out: a Markdown table and JSON. In each round every view takes three turns, one after
another: the evaluation itself; the network alone, on as many crops (or whole images) that lie in memory; decoding
alone. Views rotate from round to round. Weights are random: time does not depend on them.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from models.build import build
from models.dense import Dense
from pipeline.bench.arguments import require_count, require_network
from pipeline.bench.rows import Row, spread
from pipeline.config import Config
from pipeline.config_io import parse
from pipeline.data.index import COLUMNS, Index, load
from pipeline.data.loader import eval_batches
from pipeline.data.output import Output
from pipeline.evaluation.evaluate import ROWS_ON_CPU, ROWS_ON_GPU, ScoredModel, evaluate
from pipeline.runtime import Runtime, start
from pipeline.views import view_crops

OURS, FORWARD, DECODING = "ours", "network alone", "decoding alone"


@dataclass(frozen=True)
class Race:
    """What the command line asks for; `images` of the set at most are scored in a turn."""

    set: str
    model: str = "alexnet"
    views: tuple[str, ...] = ("centre", "ten", "dense")
    rounds: int = 5
    images: int = 256
    bf16: bool = False

    def __post_init__(self) -> None:
        require_network("--model", self.model)
        require_count("--rounds", self.rounds)
        require_count("--images", self.images)


def measure(settings: Race, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """The views' rows, and {view: {ours, forward, decoding: images/s of each round}} beside what was asked for.
    After an interrupt, of the whole rounds before it."""
    config = parse(
        {"model": {"name": settings.model}, "evaluation": {"views": list(settings.views)}}, "launch.bench evaluate"
    )
    index = _first(load(settings.set), settings.images)
    rounds: list[dict[str, dict[str, float]]] = []
    cut = ""
    with start() as runtime:
        try:
            for number, seconds in enumerate(_rounds(settings, config, index, runtime)):
                if number:  # the first warms up
                    rounds.append(seconds)
                say(f"round {number} of {settings.rounds}" if number else "warmed up")
        except KeyboardInterrupt:
            cut = f"{settings.model}: cut after {len(rounds)} of {settings.rounds} rounds"
    rates = {
        view: {name: [len(index) / seconds[view][name] for seconds in rounds] for name in rounds[0][view]}
        for view in (settings.views if rounds else ())
    }
    if rates:
        say(f"\n{settings.model}, {len(index)} images of {settings.set}\n\n{table(rates, config)}\n")
    if cut:
        say(cut)
    rows = [
        Row(
            "evaluate",
            f"{settings.model}: {view}",
            of_view[OURS],
            {name: of_view[name] for name in (FORWARD, DECODING)},
        )
        for view, of_view in rates.items()
    ]
    return rows, {"race": asdict(settings), "images_per_s": rates, "cut": cut}


def table(rates: dict[str, dict[str, list[float]]], config: Config) -> str:
    """Markdown: medians with smallest and largest; the last column is each round's ratio to the smaller limit."""
    lines = [
        "| view | softmax outputs an image | images/s | network alone | decoding alone | of the smaller limit |",
        "|---|---|---|---|---|---|",
    ]
    for view, of_view in rates.items():
        ratios = [
            ours / min(limits) for ours, *limits in zip(of_view[OURS], of_view[FORWARD], of_view[DECODING], strict=True)
        ]
        cells = [spread(of_view[name], ",.1f") for name in (OURS, FORWARD, DECODING)]
        number = len(view_crops(view, config.data.scales()))
        lines.append(f"| {view} | {number} | {' | '.join(cells)} | {spread(ratios, '.2f')} |")
    return "\n".join(lines)


def _rounds(settings: Race, config: Config, index: Index, runtime: Runtime) -> Iterator[dict[str, dict[str, float]]]:
    """Of each round, the first to warm up, the seconds that each view's turns took."""
    turns = {view: _turns(view, settings, config, index, runtime) for view in settings.views}
    for number in range(settings.rounds + 1):
        first = number % len(turns)
        yield {
            view: {name: _timed(turn, runtime) for name, turn in turns[view].items()}
            for view in (*settings.views[first:], *settings.views[:first])
        }


def _turns(
    view: str, settings: Race, config: Config, index: Index, runtime: Runtime
) -> dict[str, Callable[[], object]]:
    data = config.data
    bf16 = settings.bf16 or runtime.on_gpu
    network = build(settings.model, 1000).eval().to(runtime.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    of_view = [crop for crop, _ in view_crops(view, data.scales())]
    num_crops = len(index) * sum(crop.place != "dense" for crop in of_view)
    scales = sorted({crop.scale_px for crop in of_view if crop.place == "dense"})
    micro_batch = config.evaluation.micro_batch

    def ours() -> object:
        options: dict[str, Any] = {"runtime": runtime, "micro_batch": micro_batch, "bf16": bf16}
        return evaluate([ScoredModel(network, data, "square")], index, data, [view], **options)

    rows = ROWS_ON_GPU if runtime.on_gpu else ROWS_ON_CPU
    crops = torch.rand(rows, 3, data.crop_px, data.crop_px, device=runtime.device)
    crops = crops.contiguous(memory_format=torch.channels_last)
    dense = Dense(network, data.crop_px) if scales else network
    sizes = [size for px in scales for size in Output(px).sizes(index.height, index.width).tolist()]

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(runtime.device.type, dtype=torch.bfloat16, enabled=bf16):
            for _ in range(-(-num_crops // rows)):
                network(crops)
            for height, width in sizes:
                whole = torch.empty(2, 3, height, width, device=runtime.device)
                dense(whole.contiguous(memory_format=torch.channels_last))

    def decoding() -> None:
        # Resizing is the evaluation's own; decoding is what no reader can leave out.
        for _ in eval_batches(index, data, [], rank_info=runtime, device=runtime.device, micro_batch=micro_batch):
            pass

    return {OURS: ours, FORWARD: forward, DECODING: decoding}


def _timed(turn: Callable[[], object], runtime: Runtime) -> float:
    begin = time.perf_counter()
    turn()
    if runtime.on_gpu:
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - begin


def _first(index: Index, number: int) -> Index:
    """The set's first samples."""
    columns: dict[str, Any] = {name: np.asarray(getattr(index, name)[:number]) for name in COLUMNS}
    return replace(index, **columns)
