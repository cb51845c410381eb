"""What lint found, as one readable page: no scripts, nothing fetched, light and dark.

In: what lint.json holds. Out: HTML. Every name in it comes from the data, so every name is escaped.
"""

from html import escape
from typing import Any

from pipeline.linting.findings import SEVERITIES

EXAMPLES = 10  # of a kind
CLASSES = 60  # more than that: the largest and the smallest
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #5b8def; --error: #c62828; --warning: #a86400; --good: #2e7d32 }
@media (prefers-color-scheme: dark) { :root { --error: #ff7b72; --warning: #e3a008; --good: #56d364 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
.verdict { font-size: 1.2rem; font-weight: 600; padding: .6rem 1rem; border-left: .4rem solid }
.error { color: var(--error) } .warning { color: var(--warning) } .clean { color: var(--good) }
table { border-collapse: collapse; width: 100% } th { text-align: left }
td, th { padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.name { width: 30% } .bar { background: var(--bar); height: .8rem; min-width: 1px; margin-top: .35rem }
summary { cursor: pointer } ul { margin: .3rem 0; padding-left: 1.2rem; font-size: .9rem } small { opacity: .75 }
"""


def page(report: dict[str, Any]) -> str:
    has_errors = report["verdict"] == "errors"
    parts = [
        f"<h1>Lint of {escape(report['source'])}</h1>",
        f'<p class="verdict {"error" if has_errors else "clean"}">{escape(verdict(report))}</p>',
        _findings(report),
        _sizes(report["sizes"]),
        _classes(report["classes"]),
        _counts("Formats", report["formats"]),
        _counts("Pixel modes", report["modes"]),
    ]
    title = f"Lint of {escape(report['source'])}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def verdict(report: dict[str, Any]) -> str:
    """One line for page and console."""
    counts = report["counts"]
    found = ", ".join(_plural(counts[severity], severity) for severity in SEVERITIES[:2])
    about = f"{found} in {_plural(report['num_images'], 'image')} of {_plural(report['num_shards'], 'shard')}"
    return f"NOT CLEAN: {about}" if counts["error"] else f"CLEAN: {about}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def where(finding: dict[str, str]) -> str:
    """A finding on one line."""
    return f"{finding['shard']}: {finding['message']}" if finding["shard"] else finding["message"]


def _findings(report: dict[str, Any]) -> str:
    if not report["kinds"]:
        return "<p>Nothing was found.</p>"
    rows = []
    for kind, facts in report["kinds"].items():
        listed = [finding for finding in report["findings"] if finding["kind"] == kind]
        examples = "".join(f"<li>{escape(where(finding))}</li>" for finding in listed[:EXAMPLES])
        more = facts["count"] - min(len(listed), EXAMPLES)
        examples += f"<li>and {more:,} more: lint.json lists {len(listed):,}</li>" if more else ""
        shown = " open" if facts["severity"] == "error" else ""
        rows.append(
            f'<tr><td class="{facts["severity"]}">{facts["severity"]}</td><td class="number">{facts["count"]:,}</td>'
            f"<td><details{shown}><summary>{escape(facts['title'])} <small>{kind}</small></summary>"
            f"<ul>{examples}</ul></details></td><td>{escape(facts['action'])}</td></tr>"
        )
    head = '<tr><th>Severity</th><th class="number">Count</th><th>What, and examples</th><th>Next action</th></tr>'
    return f"<h2>Findings</h2>\n<table>{head}\n" + "\n".join(rows) + "\n</table>"


def _bars(rows: list[tuple[str, int]]) -> str:
    most = max((count for _, count in rows), default=0) or 1
    lines = (
        f'<tr><td class="name">{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td><div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in rows
    )
    return "<table>" + "\n".join(lines) + "</table>"


def _sizes(of_size: dict[str, Any]) -> str:
    rows = [
        (f"{bar['from_px']} to {bar['below_px'] - 1} px" if bar["below_px"] else f"{bar['from_px']} px and more",
         bar["count"])
        for bar in of_size["short_side"]
    ]  # fmt: skip
    extremes = "".join(
        f"<li>{name.replace('_', ' ')}: {one['width']} x {one['height']} px, "
        f"<code>{escape(one['key'])}</code> in {escape(one['shard'])}</li>"
        for name, one in of_size["extremes"].items()
    )
    return f"<h2>Short sides</h2>\n{_bars(rows)}\n<ul>{extremes}</ul>"


def _classes(classes: dict[str, Any]) -> str:
    rows = [(one["name"], one["count"]) for one in classes["counts"]]
    note = f"{classes['num_classes']:,} classes, {classes['num_empty']:,} of them empty"
    if classes["largest"]:
        largest, smallest = classes["largest"], classes["smallest"]
        note += (
            f"; largest: {largest['name']} ({largest['count']:,}), smallest: {smallest['name']} ({smallest['count']:,})"
        )
    if len(rows) > CLASSES:
        rows = sorted(rows, key=lambda row: -row[1])
        half = CLASSES // 2
        note += f". Shown: the {half} largest and the {half} smallest; lint.json has all"
        rows = rows[:half] + rows[-half:]
    return f"<h2>Classes</h2>\n<p>{escape(note)}</p>\n{_bars(rows)}"


def _counts(title: str, counts: dict[str, int]) -> str:
    return f"<h2>{title}</h2>\n{_bars(sorted(counts.items(), key=lambda one: -one[1]))}" if counts else ""
