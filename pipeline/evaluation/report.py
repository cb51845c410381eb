"""The result of an evaluation, for people and for programs.

In: scores per view and facts about the run. Out: a table for the console, and the run's evaluation.json.
Errors are fractions in the JSON and percent in the table.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.metrics import Score


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: where it was read from, what came out, how fast (images, not crops, a second)."""

    checkpoint: Path
    step: int
    data: str
    num_samples: int  # of the set; those that no score has seen could not be decoded
    data_fingerprint: str
    scores: dict[str, Score]
    images_per_s: float
    versions: dict[str, str]


def table(result: Evaluated) -> str:
    """A few aligned lines."""
    images = next(iter(result.scores.values())).seen
    lines = [f"{images:,} images of {result.data}, checkpoint of step {result.step:,}", ""]
    lines.append(f"  {'view':<8}{'top-1 error':>13}{'top-5 error':>13}{'loss':>9}")
    for view, score in result.scores.items():
        lines.append(f"  {view:<8}{score.top1_error:>12.2%} {score.top5_error:>12.2%} {score.loss:>8.3f}")
    if images < result.num_samples:
        lines += ["", f"  {result.num_samples - images:,} more images could not be decoded and are in no figure"]
    lines += ["", f"  {result.images_per_s:,.0f} images/s, all views in one pass"]
    return "\n".join(lines)


def write(result: Evaluated, path: Path) -> None:
    """Write `result` as JSON, whole or not at all."""
    facts: dict[str, Any] = {
        **asdict(result),
        "checkpoint": str(result.checkpoint),
        "scores": {
            view: {**asdict(score), "top1_error": score.top1_error, "top5_error": score.top5_error}
            for view, score in result.scores.items()
        },
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(temporary, path)
