"""Progress of long work on the console: a bar on a terminal, a line now and then elsewhere.

In: the total, what is done already, the unit. Out: a function to call with what is done now.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_LINE_EVERY_S = 10.0


@contextmanager
def meter(total: int, done: int, unit: str, doing: str = "packing") -> Iterator[Callable[[int], None]]:
    """Show progress: a bar with rate and time left on a terminal, else a plain line every ten seconds."""
    if not sys.stdout.isatty():
        yield _plain_meter(total, done, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda now: progress.update(task, completed=now)


def _plain_meter(total: int, done: int, unit: str) -> Callable[[int], None]:
    start_s = said_s = time.monotonic()

    def update(now: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s < PLAIN_LINE_EVERY_S:
            return
        said_s = time.monotonic()
        rate = (now - done) / (said_s - start_s)
        left = f", {(total - now) / rate / 60:.1f} min left" if rate else ""
        print(f"{now:,} of {total:,} {unit}, {rate:,.0f} {unit}/s{left}", flush=True)

    return update
