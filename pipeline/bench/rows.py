"""What every part of the bench comes to: a rate, its limits, the ratio, and who is the bottleneck.

In: rates in images/s (or another unit), round by round. Out: rows of a table, of a picture, and of JSON.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.versions import versions

HEADINGS = ("part", "what", "rate", "smaller limit", "of it, by the medians", "in each round", "bottleneck")


@dataclass(frozen=True)
class Row:
    """Rates of one thing in each round, and in the same rounds those of its `limits`, by name."""

    part: str
    what: str
    rates: Sequence[float]
    limits: Mapping[str, Sequence[float]]
    unit: str = "images/s"

    @property
    def bottleneck(self) -> str:
        """The limit with the smallest median."""
        return min(self.limits, key=lambda name: statistics.median(self.limits[name]))

    @property
    def limit(self) -> float:
        return statistics.median(self.limits[self.bottleneck])

    @property
    def share(self) -> float:
        return statistics.median(self.rates) / self.limit

    @property
    def ratios(self) -> list[float]:
        """Each round's ratio to its smallest limit."""
        smallest = map(min, zip(*self.limits.values(), strict=True))
        return [rate / limit for rate, limit in zip(self.rates, smallest, strict=True)]

    def facts(self) -> dict[str, object]:
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "rates": [*self.rates],
            "limits": {name: [*rates] for name, rates in self.limits.items()},
            "share": self.share,
            "bottleneck": self.bottleneck,
        }


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    for row in rows:
        rate, limit = (f"{value:,.4g} {row.unit}" for value in (statistics.median(row.rates), row.limit))
        cells = [row.part, row.what, rate, limit, f"{row.share:.2f}", spread(row.ratios, ".2f"), row.bottleneck]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str) -> str:
    """Median (smallest..largest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}}..{high:{form}})"


def write(path: Path, machine: dict[str, object], rows: Sequence[Row], parts: dict[str, object]) -> None:
    """All figures as JSON: the machine, versions, rows, and what each part measured."""
    report = {"machine": machine, "versions": versions(), "rows": [row.facts() for row in rows], "parts": parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=str) + "\n")


def finish(
    rows: Sequence[Row],
    parts: dict[str, object],
    machine: dict[str, object],
    to_json: Path | None,
    plot: Path | None,
    say: Callable[[str], None],
) -> None:
    """Say the summary, write the JSON and draw the picture that were asked for."""
    if rows:
        say(f"\n{table(rows)}\n")
    if to_json:
        write(to_json, machine, rows, parts)
    if plot and not rows:
        say(f"{plot} is not drawn: nothing ran beside a limit of its own")
    elif plot:
        from pipeline.bench.plot import bars

        bars([row.facts() for row in rows], machine, plot)
