"""`launch.bench loader`: the speed of our data loader against its peers, as ratios within one run.

In: a folder of photos. Out: one Markdown table a size of photos, and all turns as JSON. Rules: README.md.
"""

import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from tests.benchmarks.prepare import ROOT, SIZES, NotPrepared, claim, class_folders, prepare
from tests.benchmarks.rounds import CONTESTANTS, REFERENCE, Process, Result, race

MIN_TURN_S = 1.0


@dataclass(frozen=True)
class Contest:
    """What the command line asks for."""

    photos: Path
    work: Path
    sizes: tuple[str, ...] = SIZES
    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    rounds: int = 7
    images: int = 2000
    min_turn_s: float = MIN_TURN_S
    cores: int = 1
    ffcv_python: str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        for flag, given, known in (
            ("--sizes", self.sizes, SIZES),
            ("--contestants", self.contestants, tuple(CONTESTANTS)),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f"{flag}: there is no '{name}'. Choose among {', '.join(known)}")
        for flag, number in (("--rounds", self.rounds), ("--images", self.images), ("--cores", self.cores)):
            if number < 1:
                raise UserError(f"{flag} {number}: give 1 or more")


def contest(wanted: Contest, say: Callable[[str], None]) -> dict[str, dict[str, Result]]:
    """Run it; the tables are said, the turns written to `out` and returned by size and contestant."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped contestants must not outlive their driver
    images = class_folders(wanted.photos)
    claim(wanted.work, images)
    results: dict[str, dict[str, Result]] = {}
    for size in wanted.sizes:
        results[size] = _of_size(wanted, size, images, say)
        say(f"\n{size}, {wanted.cores} cores, {wanted.rounds} rounds\n\n{table(results[size])}\n")
        if wanted.out:
            _write(wanted, results)
    if not any(result.rates for of_size in results.values() for result in of_size.values()):
        raise UserError("no contestant could run; the table says why")
    return results


def environment(cores: int) -> dict[str, str]:
    """The same for all contestants: one thread to an operator, and memory kept as launch/environment.sh keeps it."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": str(cores),
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
    }


def _of_size(wanted: Contest, size: str, images: Path, say: Callable[[str], None]) -> dict[str, Result]:
    begin: dict[str, Callable[[], Process]] = {}
    missing: dict[str, str] = {}
    logs = wanted.work / size / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for name in wanted.contestants:
        contestant = CONTESTANTS[name]
        try:
            folder = prepare(contestant.form, size, images, wanted.work, wanted.ffcv_python, say)
        except NotPrepared as reason:
            missing[name] = str(reason)
            continue
        if contestant.in_ffcv and wanted.ffcv_python is None:
            missing[name] = "not installed: no --ffcv-python given"
            continue
        python = (contestant.in_ffcv and wanted.ffcv_python) or sys.executable
        module = f"tests.benchmarks.loaders.{contestant.module}"
        command = [python, "-m", module, "--folder", str(folder.absolute()), "--cores", str(wanted.cores)]
        begin[name] = partial(Process, command, environment(wanted.cores), ROOT, logs / f"{name}.log")
    raced = race(begin, wanted.rounds, wanted.images, wanted.min_turn_s, say)
    return {name: raced.get(name) or Result(failed=missing[name]) for name in wanted.contestants}


def table(results: dict[str, Result]) -> str:
    """Markdown: medians over the rounds with smallest and largest, of speeds and of each round's ratio to ours."""
    lines = ["| contestant | versions | images/s | min..max | times ours | min..max |", "|---|---|---|---|---|---|"]
    ours = results.get(REFERENCE, Result())
    for name, result in results.items():
        if result.failed or not result.rates:
            lines.append(f"| {name} | {result.failed.replace('|', '/')} | | | | |")
            continue
        rates = result.rates
        cells = [f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}..{max(rates):,.0f}", "", ""]
        if ours.rates and not ours.failed:
            ratios = [rate / our for rate, our in zip(rates, ours.rates, strict=True)]
            cells[2:] = [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}..{max(ratios):.2f}"]
        note = " (limit)" if CONTESTANTS[name].is_limit else ""
        lines.append(f"| {name}{note} | {result.versions} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _write(wanted: Contest, results: dict[str, dict[str, Result]]) -> None:
    assert wanted.out
    turns = {size: {name: asdict(result) for name, result in found.items()} for size, found in results.items()}
    facts = {"machine": machine(), "contest": asdict(wanted), "results": turns}
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.out.write_text(json.dumps(facts, indent=1, default=str) + "\n")
