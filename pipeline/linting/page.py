"""What lint found, as one readable page: no scripts, nothing fetched, light and dark, on a phone as on a desk.

In: what lint.json holds, and the samples to show. Out: HTML. Its names come from the data, so all are escaped.
"""

from html import escape
from typing import Any, NamedTuple

from pipeline.linting.findings import SEVERITIES
from pipeline.wording import counted

EXAMPLES = 10  # of a kind
CLASSES = 60  # more than that: the largest and the smallest
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #5b8def; --error: #c62828; --warning: #a86400; --good: #2e7d32 }
@media (prefers-color-scheme: dark) { :root { --error: #ff7b72; --warning: #e3a008; --good: #56d364 } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
.verdict { font-size: 1.2rem; font-weight: 600; padding: .6rem 1rem; border-left: .4rem solid }
.error { color: var(--error) } .warning { color: var(--warning) } .clean { color: var(--good) }
table { border-collapse: collapse; width: 100% } th { text-align: left; white-space: nowrap }
td, th { padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { background: var(--bar); height: .8rem; margin-top: .35rem } .scale { width: 55% }
summary { cursor: pointer } ul { margin: .3rem 0; padding-left: 1.2rem; font-size: .9rem } small { opacity: .75 }
h1, p { overflow-wrap: anywhere }
.findings td:last-child { width: 28% } .findings td:first-child { white-space: nowrap }
.shown { list-style: none; display: flex; gap: .7rem; align-items: center; margin: .4rem 0 0 -1.2rem }
.shown div { min-width: 0; overflow-wrap: anywhere }
.shown img, .shown .none { flex: none; width: 4.5rem; height: 4.5rem; object-fit: contain; background: #8882 }
.shown .none { font-size: .75rem; display: grid; place-items: center; text-align: center }
@media (max-width: 40rem) {
  body { margin: 1rem auto } .findings tr:first-child { display: none }
  .findings, .findings tbody, .findings tr, .findings td { display: block; width: auto }
  .findings td { border: 0; padding: .1rem 0; text-align: left } .findings td:last-child { width: auto }
  .findings td:first-child, .findings .number { display: inline-block; margin-right: .6rem }
  .findings tr { border-bottom: 1px solid var(--line); padding: .7rem 0 } .scale { width: 35% }
}
"""


class Shown(NamedTuple):
    """Of a sample: its label in words, and a data: URL of its picture, "" where it cannot be decoded."""

    label: str
    picture: str


def page(report: dict[str, Any], shown: dict[tuple[str, str], Shown]) -> str:
    """`shown` are the samples to show, by shard and key."""
    has_errors = report["verdict"] == "errors"
    parts = [
        f"<h1>Lint of {escape(report['source'])}</h1>",
        f'<p class="verdict {"error" if has_errors else "clean"}">{escape(verdict(report))}</p>',
        _findings(report, shown),
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
    told = ", ".join(counted(counts[severity], severity) for severity in SEVERITIES[:2])
    about = f"{told} in {counted(report['num_images'], 'image')} of {counted(report['num_shards'], 'shard')}"
    return f"NOT CLEAN: {about}" if counts["error"] else f"CLEAN: {about}"


def where(finding: dict[str, str]) -> str:
    """A finding on one line."""
    return f"{finding['shard']}: {finding['message']}" if finding["shard"] else finding["message"]


def _example(finding: dict[str, str], shown: dict[tuple[str, str], Shown]) -> str:
    words, sample = escape(where(finding)), shown.get((finding["shard"], finding["key"]))
    if sample is None:
        return f"<li>{words}</li>"
    none = '<span class="none">no picture</span>'
    picture = f'<img src="{sample.picture}" alt="">' if sample.picture else none
    return f'<li class="shown">{picture}<div>{words}<br><small>{escape(sample.label)}</small></div></li>'


def _findings(report: dict[str, Any], shown: dict[tuple[str, str], Shown]) -> str:
    if not report["kinds"]:
        return "<p>Nothing was found.</p>"
    rows = []
    for kind, known in report["kinds"].items():
        listed = [finding for finding in report["findings"] if finding["kind"] == kind]
        examples = "".join(_example(finding, shown) for finding in listed[:EXAMPLES])
        more = known["count"] - min(len(listed), EXAMPLES)
        examples += f"<li>and {more:,} more: lint.json lists {len(listed):,}</li>" if more else ""
        is_open = " open" if known["severity"] == "error" else ""
        rows.append(
            f'<tr><td class="{known["severity"]}">{known["severity"]}</td><td class="number">{known["count"]:,}</td>'
            f"<td><details{is_open}><summary>{escape(known['title'])} <small>{kind}</small></summary>"
            f"<ul>{examples}</ul></details></td><td>{escape(known['action'])}</td></tr>"
        )
    head = '<tr><th>Severity</th><th class="number">Count</th><th>What, and examples</th><th>Next action</th></tr>'
    return f"<h2>Findings</h2>\n<table class='findings'>{head}\n" + "\n".join(rows) + "\n</table>"


def _bars(rows: list[tuple[str, int]]) -> str:
    most = max((count for _, count in rows), default=0) or 1
    lines = (
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td class="scale"><div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>'
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
        f"<li>{name.replace('_', ' ')}: {extreme['width']} x {extreme['height']} px, "
        f"<code>{escape(extreme['key'])}</code> in {escape(extreme['shard'])}</li>"
        for name, extreme in of_size["extremes"].items()
    )
    return f"<h2>Short sides</h2>\n{_bars(rows)}\n<ul>{extremes}</ul>"


def _classes(classes: dict[str, Any]) -> str:
    rows = [(count["name"], count["count"]) for count in classes["counts"]]
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
    return f"<h2>{title}</h2>\n{_bars(sorted(counts.items(), key=lambda row: -row[1]))}" if counts else ""
