"""Where the results of an evaluation go, and their writing: table, JSON, per-image file, picture, journal.

In: what was scored, and found. Out: files in the run's folder, or in one named after what was scored.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation import predictions, report
from pipeline.evaluation.report import Evaluated
from pipeline.evaluation.scoring import Scoring
from pipeline.tracking.journal import open_journal
from pipeline.tracking.points import EPOCH, STEP, eval_point


@dataclass(frozen=True)
class Results:
    """The folder that they belong to, the JSON file (the picture lies beside it), and what the set is called beside a
    run's own, None for that."""

    home: Path
    out: Path
    other_set: str | None


def placed(scoring: Scoring, out: Path | None) -> Results:
    """Where results go; the JSON to `out` if that is given."""
    home, other_set = _home(scoring), _other_set(scoring)
    file = out or home / (f"evaluation-{other_set}.json" if other_set else "evaluation.json")
    if out and home.exists() and not os.access(home, os.W_OK):
        home = out.parent  # a run that one may only read
    return Results(home, file, other_set)


def write(result: Evaluated, results: Results, per_image: Path | None, say: Callable[[str], None]) -> None:
    """Say the table, write everything, and say where."""
    say(report.table(result) + "\n")  # first: a run that one may only read is scored all the same
    if per_image:
        predictions.write(result.outcomes, result.index, result.names, per_image)
        say(f"  predictions {per_image}")
    out = results.out
    out.parent.mkdir(parents=True, exist_ok=True)
    replaced = ", in place of the one before (--out keeps both)" if out.exists() else ""
    report.write(result, out)
    say(f"  written     {out}{replaced}")
    _show(result, results, say)


def _show(result: Evaluated, results: Results, say: Callable[[str], None]) -> None:
    """The picture of mistakes, and all of it to Weights & Biases."""
    from pipeline.evaluation import figure

    first, config, outcomes = result.classifiers[0], result.classifiers[0].config, result.outcomes
    picture_file = results.out.with_suffix(".png")
    scores = outcomes.scores()
    view = min(scores, key=lambda name: scores[name].top1_error)
    ids = figure.worst_mistakes(outcomes, view)
    picture_file.unlink(missing_ok=True)  # of an evaluation before
    source = " + ".join(each.source for each in result.classifiers)
    picture, unknown = figure.draw(outcomes, view, ids, result.index, config.data, result.names, source)
    if picture:
        picture.save(picture_file)
        say(f"  mistakes    {picture_file} (the most confident ones, view {view})")
    if unknown:
        say(
            f"              no font here has {''.join(unknown[:20])}: install one (Noto's have most) and run this again"
        )
    point = {STEP: first.step, EPOCH: first.epoch}
    for name, score in scores.items():
        point |= eval_point(name, score.as_dict(), results.other_set)
    home = results.home
    home.mkdir(parents=True, exist_ok=True)
    with open_journal(config, home, is_main=True, wandb_id=first.wandb_id if home == first.run else None) as journal:
        journal.log(point)
        journal.log_media(report.presentation(result, results.other_set, picture, view))
    if journal.wandb_folder:
        say(f"  W&B         {journal.wandb_folder}")


def _home(scoring: Scoring) -> Path:
    """The folder that results belong to: the run's own, or one named after what was scored."""
    first = scoring.classifiers[0]
    if len(scoring.classifiers) > 1:
        all_of_them = "\n".join(each.weights_sha256 for each in scoring.classifiers)
        return Path("runs", f"ensemble-{hashlib.sha256(all_of_them.encode()).hexdigest()[:8]}")
    if first.run is not None:
        return first.run
    name, _, file = first.source.partition("=")
    what = re.sub(r"[^\w.-]+", "-", f"{name}-{Path(file).stem}" if file else Path(name).stem)
    return Path("runs", f"{what}-{first.weights_sha256[:8]}")  # which no run is called


def _other_set(scoring: Scoring) -> str | None:
    """What the set is called beside a run's own; None for the validation set that the run was trained with."""
    first = scoring.classifiers[0]
    own = first.config.data.validation if len(scoring.classifiers) == 1 and first.run else None
    if own is not None and _same(own, scoring.data):
        return None
    name = re.sub(r"[^\w.-]+", "-", scoring.data.rstrip("/").rpartition("/")[2])
    return f"{name}-{scoring.index.fingerprint[:8]}"  # two sets may lie in folders of one name


def _same(own: str, data: str) -> bool:
    return own.rstrip("/") == data.rstrip("/") or Path(own).resolve() == Path(data).resolve()
