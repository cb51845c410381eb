"""What is said of a linted set: the verdict, an example of each kind of finding, where the page is, what to do next.

In: what lint.lint returns of a set. Out: lines for people; page.py has all findings.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from pipeline import hints
from pipeline.data.index import QUARANTINE
from pipeline.linting.findings import KINDS
from pipeline.linting.lint import PAGE, Linted
from pipeline.linting.page import verdict, where


def lines(linted: Linted) -> Iterator[str]:
    """All of it, in the order in which a person wants to know."""
    report, folder = linted.report, linted.folder
    yield f"{verdict(report)}, {report['source']}"
    example: dict[str, str] = {}
    for finding in report["findings"]:
        example.setdefault(finding["kind"], where(finding))
    for kind, of_kind in report["kinds"].items():
        yield f"  {of_kind['severity']:<8}{of_kind['count']:>9,}  {of_kind['title']}"
        yield f"{'':21}e.g. {example[kind]}"
    if linted.num_quarantined:
        yield f"{folder / QUARANTINE} has new rows, of images that cannot be decoded: {linted.num_quarantined:,}"
        if not linted.is_packed or folder.resolve() != linted.home.resolve():
            yield "training reads the quarantine.tsv beside a packed set's manifest.json: copy it there"
    if linted.num_forgotten:
        yield f"{folder / QUARANTINE} lost rows, of images that are fine now: {linted.num_forgotten:,}"
    yield f"page: {folder / PAGE}"
    yield from _next(linted)


def _next(linted: Linted) -> Iterator[str]:
    """The worst finding's action, and the command for a set without errors."""
    report = linted.report
    worst = next(iter(report["kinds"]), None)
    severity = KINDS[worst].severity if worst else ""
    if worst and severity != "info":
        yield f"next: {KINDS[worst].action}"
    if severity == "error":
        return
    source, then = report["source"], "then" if severity == "warning" else "next"
    if not linted.is_packed:
        yield f"{then}: {hints.command('launch.pack', source, 'OUT')}"
    elif (name := Path(source).name) in ("train", "validation"):
        yield f"{then}: train with it: {shlex.quote(f'data.{name}={source}')}"
    else:
        yield f"{then}: score on it: {hints.command('launch.evaluate', 'RUN', '--data', source)}"
