"""Pictures: the rows of a bench beside their limits, and the curves of runs.

In: the JSON of launch.bench; run folders, whose metrics.jsonl has every point that W&B has. Needs matplotlib.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.tracking.points import EPOCH, TRAIN_TOP1

FORMS = (".png", ".svg", ".pdf")


def require(out: Path) -> None:
    """Raises UserError for a name that is no picture's."""
    if out.suffix not in FORMS:
        raise UserError(f"{out} is no picture's name: end it in one of {', '.join(FORMS)}")
    import matplotlib

    matplotlib.use("Agg")  # no display


def bars(rows: Sequence[dict], machine: dict, out: Path) -> None:
    """A bar a row, as a share of its limit."""
    require(out)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1 + 0.4 * len(rows)), layout="constrained")
    places = range(len(rows))[::-1]
    axes.barh(places, [row["share"] for row in rows], color="#4878a8")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places, [f"{row['part']}, {row['what']}" for row in rows])
    for place, row in zip(places, rows, strict=True):
        text = f"{statistics.median(row['rates']):,.4g} {row['unit']}, limit: {row['bottleneck']}"
        axes.text(0.01, place, text, va="center", fontsize=8)
    axes.set_xlabel("share of the smaller limit")
    axes.set_title(f"{machine['gpu']}, {machine['cores']} cores of {machine['cpu']}", fontsize=9)
    _save(figure, out)


def curves(runs: Sequence[Path], out: Path) -> None:
    """Top-1 errors by epoch: of training as a thin line, of each view as dots. UserError for a run without points."""
    require(out)
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, run in enumerate(runs):
        points = points_of(run)
        keys = sorted({key for point in points for key in point if key.endswith("/top1_error")})
        for key in keys:
            curve = [(point[EPOCH], 100 * point[key]) for point in points if point.get(key) is not None]
            style = {"linewidth": 0.8} if key == TRAIN_TOP1 else {"linewidth": 1.5, "marker": "."}
            axes.plot(*zip(*curve, strict=True), color=f"C{number}", label=f"{run.resolve().name}: {key}", **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 error, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, out)


def points_of(run: Path) -> list[dict]:
    """The logged points of a run folder. UserError if there are none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is no run folder: it has no {path.name}")
    points = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    if not points:
        raise UserError(f"{path} has no points yet")
    return points


def _save(figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
