"""`launch.bench loader` and `launch.bench train`: our speed against our peers and our limits, as ratios within one run.

In: a folder of photos. Out: Markdown tables, one a size of photos, and all turns as JSON. The rules are in
tests/benchmarks/README.md.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.bench.arguments import require_count, require_network
from pipeline.bench.contestant import Task, words
from pipeline.bench.field import FIELDS, REFERENCE, Contestant
from pipeline.bench.forms import SIZES, NotPrepared, claim, class_folders, prepare
from pipeline.bench.machine import device
from pipeline.bench.race import NO_ROUND, Process, Result, race
from pipeline.bench.rows import Row
from pipeline.bench.surroundings import ROOT, environment
from pipeline.errors import UserError

MIN_TURN_S = 1.0
USUAL_BATCH = {"cuda": {"alexnet": 512, "vgg": 64}, "cpu": {"alexnet": 32, "vgg": 8}}


@dataclass(frozen=True)
class Contest:
    """What the command line asks for. `kind` is loader or train; `model` is what trainers train. Of `images` a turn at
    least, and `batch` images at once, None is what suits kind, model and device."""

    kind: str
    photos: Path
    work: Path
    sizes: tuple[str, ...] = SIZES
    contestants: tuple[str, ...] = ()  # none: all that can run on this device
    rounds: int = 7
    images: int | None = None
    min_turn_s: float = MIN_TURN_S
    cores: int = 1
    batch: int | None = None
    model: str = "alexnet"
    ffcv_python: str | None = None

    def __post_init__(self) -> None:
        for flag, given, known in (
            ("--sizes", self.sizes, SIZES),
            ("--contestants", self.contestants, tuple(FIELDS[self.kind])),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f"{flag}: there is no '{name}'. Choose among {', '.join(known)}")
        for name in self.contestants:
            if not (contestant := FIELDS[self.kind][name]).is_here:
                raise UserError(
                    f"--contestants {name}: there is no {contestant.script}; an installed package has only ours and "
                    f"the limits. Run launch.bench from a checkout of the repository, or leave {name} out"
                )
        require_network("--model", self.model)
        for name in ("rounds", "images", "cores", "batch"):
            number = getattr(self, name)
            require_count(f"--{name}", 1 if number is None else number)

    @property
    def rows(self) -> int:
        """Images at once."""
        if self.kind == "loader":
            return self.batch or 64
        return self.batch or USUAL_BATCH[device()]["vgg" if "vgg" in self.model else "alexnet"]

    @property
    def least(self) -> int:
        """Images a turn, at least. A turn of training is as long as `min_turn_s` says, VGG on a CPU being slow."""
        return self.images or (2000 if self.kind == "loader" else self.rows)

    def field(self) -> dict[str, Contestant]:
        """Who takes part: those asked for, else all that can run here."""
        known = FIELDS[self.kind]
        if self.contestants:
            return {name: known[name] for name in self.contestants}
        on_gpu = device() == "cuda"
        return {
            name: contestant
            for name, contestant in known.items()
            if contestant.is_here and (on_gpu or not contestant.gpu_alone)
        }


def contest(settings: Contest, say: Callable[[str], None]) -> tuple[list[Row], dict]:
    """Run it. The tables are said; returned are the rows of ours, and all turns by size and contestant. After an
    interrupt, of the whole rounds before it."""
    images = class_folders(settings.photos)
    claim(settings.work, images)
    rows: list[Row] = []
    by_size: dict[str, dict] = {}
    cut = ""
    for size in settings.sizes:
        try:
            results, num_rounds = _of_size(settings, size, images, say)
        except KeyboardInterrupt:  # while its files were made
            results, num_rounds = {name: Result(failed=NO_ROUND) for name in settings.field()}, 0
        what = f"{settings.model}, {size}" if settings.kind == "train" else size
        say(f"\n{what}, {settings.cores} cores, batches of {settings.rows}, {num_rounds} rounds\n\n{table(results)}\n")
        by_size[size] = {name: asdict(result) for name, result in results.items()}
        rows += rows_of(settings, what, results)
        if num_rounds < settings.rounds:
            cut = f"{what}: cut after {num_rounds} of {settings.rounds} rounds"
            say(cut)
            break
    if not cut and not any(result["images"] for of_size in by_size.values() for result in of_size.values()):
        raise UserError("no contestant could run; the table says why")
    return rows, {"contest": asdict(settings), "results": by_size, "cut": cut}


def rows_of(settings: Contest, what: str, results: dict[str, Result]) -> list[Row]:
    """Ours, in each form and way that ran, with the limits that ran."""
    rows = []
    for name, contestant in settings.field().items():
        result = results[name]
        limits = {
            limit: results[limit].rates for limit in contestant.limits if limit in results and results[limit].complete
        }
        if result.complete and limits:
            rows.append(Row(settings.kind, f"{what}: {name}", result.rates, limits))
    return rows


def _of_size(settings: Contest, size: str, images: Path, say: Callable[[str], None]) -> tuple[dict[str, Result], int]:
    """Of each contestant, and the number of whole rounds."""
    begin: dict[str, Callable[[], Process]] = {}
    missing: dict[str, str] = {}
    logs = settings.work / size / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # The same for all: one thread to an operator; a network's have all cores, as in training.
    threads = settings.cores if settings.kind == "train" else 1
    variables = environment(OMP_NUM_THREADS=str(threads), NUMBA_NUM_THREADS=str(settings.cores))
    folders: dict[str, Path | NotPrepared] = {}
    for form in {contestant.form: None for contestant in settings.field().values()}:
        try:
            folders[form] = prepare(form, size, images, settings.work, settings.ffcv_python, say)
        except NotPrepared as reason:
            folders[form] = reason
    for name, contestant in settings.field().items():
        folder = folders[contestant.form]
        if isinstance(folder, NotPrepared):
            missing[name] = str(folder)
            continue
        if contestant.in_ffcv and settings.ffcv_python is None:
            missing[name] = "not installed: no --ffcv-python given"
            continue
        python = (contestant.in_ffcv and settings.ffcv_python) or sys.executable
        task = Task(folder, settings.cores, device(), settings.rows, settings.model, contestant.settings)
        command = [python, *contestant.command, *words(task)]
        begin[name] = partial(Process, command, variables, ROOT, logs / f"{settings.kind}-{name}.log")
    raced, num_rounds = race(begin, settings.rounds, settings.least, settings.min_turn_s, say)
    return {name: raced.get(name) or Result(failed=missing[name]) for name in settings.field()}, num_rounds


def table(results: dict[str, Result]) -> str:
    """Markdown: medians over the rounds with smallest and largest, of speeds and of each round's ratio to ours."""
    lines = ["| contestant | versions | images/s | min..max | times ours | min..max |", "|---|---|---|---|---|---|"]
    ours = results.get(REFERENCE, Result())
    for name, result in results.items():
        if not result.complete:
            lines.append(f"| {name} | {result.failed.replace('|', '/')} | | | | |")
            continue
        rates = result.rates
        cells = [_rate(statistics.median(rates)), f"{_rate(min(rates))}..{_rate(max(rates))}", "", ""]
        if ours.complete:
            ratios = [rate / our for rate, our in zip(rates, ours.rates, strict=True)]
            cells[2:] = [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}..{max(ratios):.2f}"]
        note = " (limit)" if name.startswith("limit") else ""
        lines.append(f"| {name}{note} | {result.versions} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
