"""The result of an evaluation, for people and for programs.

In: outcomes and facts of the networks and the set. Out: a table for the console, evaluation.json, and tables for
Weights & Biases. Errors are in %, as the names of the keys say.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import files
from pipeline.data.index import Index
from pipeline.evaluation.classifier import Classifier
from pipeline.evaluation.interval import wilson
from pipeline.evaluation.outcomes import NO_CLASS, Outcomes
from pipeline.evaluation.papers import ScoredWeights, compare
from pipeline.evaluation.score import TOP, Score
from pipeline.tracking.points import Media
from pipeline.views import view_crops
from pipeline.wording import counted

NUM_PAIRS = 20  # of the worst confusions
NUM_WORST = 50  # classes in a table of Weights & Biases
PREPROCESSING = ("crop_px", "resize_px", "interpolation", "antialias", "mean", "std")


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: what was scored on what, what became of each image, how fast (images, not crops, a second).

    `outputs` int64 are the networks' outputs of the set's classes, `names[output]` their names.
    """

    classifiers: Sequence[Classifier]
    data: str
    index: Index
    outputs: np.ndarray
    names: Sequence[str]
    outcomes: Outcomes
    images_per_s: float
    how: dict[str, Any]  # precision, device, processes, versions, quarantine_fingerprint

    def compare_with(self, view: str) -> str:
        entries = [ScoredWeights(classifier.config, classifier.weights) for classifier in self.classifiers]
        return compare(view, entries, len(self.index), len(self.outputs))


def table(result: Evaluated) -> str:
    """A few aligned lines."""
    scores = result.outcomes.scores()
    images = next(iter(scores.values())).seen
    what = " and ".join(_who(classifier) for classifier in result.classifiers)
    if len(result.classifiers) > 1:
        what = f"the average of {len(result.classifiers)} networks: {what}"
    wide = max(4, *map(len, scores)) + 2
    lines = [f"{counted(images, 'image')} of {result.data}, {what}", ""]
    has_five = all(score.top5_error is not None for score in scores.values())
    of_five = f"{'top-5 error':>15}" if has_five else ""
    lines.append(f"  {'view':<{wide}}{'top-1 error':>11}{'95 % interval':>18}{of_five}{'loss':>9}")
    for view, score in scores.items():
        low, high = wilson(score.seen - score.correct1, score.seen)
        interval = f"{100 * low:.2f}..{100 * high:.2f}"
        of_five = "" if score.top5_error is None else f"{score.top5_error:>15.2%}"
        lines.append(f"  {view:<{wide}}{score.top1_error:>11.2%}{interval:>18}{of_five}{score.loss:>9.3f}")
    if images < len(result.index):
        lines += ["", f"  in no figure, since they cannot be decoded: {counted(len(result.index) - images, 'image')}"]
    lines.append("")
    sentences = {view: result.compare_with(view) for view in scores}
    if len(set(sentences.values())) == 1:
        lines.append(f"  compare with: {next(iter(sentences.values()))}")
    else:
        lines += [f"  compare with, {view}: {sentence}" for view, sentence in sentences.items()]
    lines.append(f"  {result.images_per_s:,.1f} images/s, all views in one pass")
    return "\n".join(lines)


def facts(result: Evaluated) -> dict[str, Any]:
    """All of it, for evaluation.json."""
    outcomes, classes = result.outcomes, result.index.classes
    views = {}
    for view, score in outcomes.scores().items():
        seen = [
            crop for classifier in result.classifiers for crop, _ in view_crops(view, classifier.config.data.scales())
        ]
        views[view] = {
            **_figures(score),
            "compare_with": result.compare_with(view),
            "scales_px": sorted({crop.scale_px for crop in seen}),
            "num_looks": len(seen),
            "classes": by_class(outcomes, view, result.outputs, classes),
            "confusions": confusions(outcomes, view, result.names),
        }
    return {
        "networks": [_facts_of(classifier) for classifier in result.classifiers],
        "data": result.data,
        "data_fingerprint": result.index.fingerprint,
        "num_samples": len(result.index),
        "num_scored": int(outcomes.scored.sum()),
        "views": views,
        "images_per_s": result.images_per_s,
        **result.how,
    }


def by_class(outcomes: Outcomes, view: str, outputs: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Images and errors of each class of the set, in its order."""
    outcome = outcomes.views[view]
    wrong1, wrong5 = (outcome.errors(outcomes.labels, outcomes.scored, top) for top in (1, 5))
    size, has_five = int(outputs.max()) + 1, outcomes.num_outputs > TOP
    chosen = (outcomes.scored, wrong1, wrong5)
    seen, *wrong = (np.bincount(outcomes.labels[rows], minlength=size) for rows in chosen)
    return [
        {
            "class": name,
            "seen": int(seen[output]),
            "top1_error_percent": _percent(wrong[0][output], seen[output]),
            **({"top5_error_percent": _percent(wrong[1][output], seen[output])} if has_five else {}),
        }
        for name, output in zip(classes, outputs.tolist(), strict=True)
    ]


def confusions(outcomes: Outcomes, view: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs (label, wrong first class) that came most often, most frequent first."""
    likeliest = outcomes.views[view].classes[:, 0]
    wrong = outcomes.scored & (likeliest != outcomes.labels) & (likeliest != NO_CLASS)
    of_label = Counter(outcomes.labels[outcomes.scored].tolist())
    pairs = Counter(zip(outcomes.labels[wrong].tolist(), likeliest[wrong].tolist(), strict=True))
    ordered = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_PAIRS]
    return [
        {
            "label": names[label],
            "predicted": names[predicted],
            "count": count,
            "of_label_percent": _percent(count, of_label[label]),
        }
        for (label, predicted), count in ordered
    ]


def presentation(result: Evaluated, other_set: str | None, picture: Any, picture_view: str) -> Media:
    """What Weights & Biases shows of it: the worst classes and confusions of each view, `picture` (or None) of the most
    confident mistakes in `picture_view`, and the errors in %; keys as in `eval_point`."""
    prefix = f"eval/{other_set}" if other_set else "eval"
    tables, summary = {}, {}
    for view, figures in facts(result)["views"].items():
        worst = sorted(figures["classes"], key=lambda row: -(row["top1_error_percent"] or 0))[:NUM_WORST]
        for name, rows in (("worst_classes", worst), ("confusions", figures["confusions"])):
            if rows:
                tables[f"{prefix}/{view}/{name}"] = (list(rows[0]), [list(row.values()) for row in rows])
        for key in ("top1_error_percent", "top1_interval_percent", "top5_error_percent", "compare_with"):
            if key in figures:
                summary[f"{prefix}/{view}/{key}"] = figures[key]
    pictures = {f"{prefix}/{picture_view}/mistakes": (picture, "label, and five guesses")} if picture else {}
    return Media(result.classifiers[0].step, tables, pictures, summary)


def write(result: Evaluated, path: Path) -> None:
    """Write all facts as JSON, whole or not at all. Raises UserError on a full disk."""
    files.replace(
        path,
        (json.dumps(facts(result), indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"),
        files.AGAIN,
    )


def _figures(score: Score) -> dict[str, Any]:
    figures: dict[str, Any] = asdict(score)
    figures["loss"] = score.loss if math.isfinite(score.loss) else None  # JSON has no word for it
    for top, correct in ((1, score.correct1), (TOP, score.correct5)):
        if correct is None:
            del figures["correct5"]
            continue
        wrong = score.seen - correct
        figures[f"top{top}_error_percent"] = _percent(wrong, score.seen)
        figures[f"top{top}_interval_percent"] = [100 * end for end in wilson(wrong, score.seen)]
    return figures


def _percent(part: int, whole: int) -> float | None:
    return 100 * int(part) / int(whole) if whole else None


def _who(classifier: Classifier) -> str:
    name = classifier.config.model.name
    named = classifier.source if classifier.source.startswith(name) else f"{name}, {classifier.source}"
    return named + (f", step {classifier.step:,}" if classifier.step else "")


def _facts_of(classifier: Classifier) -> dict[str, Any]:
    data = classifier.config.data.model_dump(mode="json")
    trained = {"quarantine_fingerprint": classifier.quarantine_fingerprint} if classifier.quarantine_fingerprint else {}
    return {
        "source": classifier.source,
        "model": classifier.config.model.name,
        "weights": str(classifier.weights),
        "weights_sha256": classifier.weights_sha256,
        "step": classifier.step,
        "epoch": classifier.epoch,
        "num_outputs": classifier.num_outputs,
        "preprocessing": {name: data[name] for name in PREPROCESSING},
        "corners": classifier.config.evaluation.corners,
        **trained,
    }
