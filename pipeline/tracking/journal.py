"""What a run says of itself, to all its sinks: RUN/metrics.jsonl, the console, Weights & Biases. Silent off rank 0.

In: points, dictionaries from the keys of `points` to numbers. Out: whatever the sinks make of them. A dead tracker is a
warning; training goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import Config
from pipeline.own import find_tracker
from pipeline.tracking.jsonl import METRICS, JsonLines
from pipeline.tracking.points import Media, Point
from pipeline.tracking.sink import Sink


class Journal(Sink):
    """Hands every point to all sinks; on other ranks it has none, so the loop needs no `if`."""

    def __init__(self, sinks: list[Sink], wandb_id: str | None = None, wandb_folder: str | None = None):
        self.sinks = sinks
        self.wandb_id = wandb_id
        self.wandb_folder = wandb_folder

    def log(self, point: Point) -> None:
        for sink in self.sinks:
            sink.log(point)

    def print_line(self, text: str) -> None:
        for sink in self.sinks:
            sink.print_line(text)

    def advance(self) -> None:
        for sink in self.sinks:
            sink.advance()

    def log_media(self, media: Media) -> None:
        for sink in self.sinks:
            sink.log_media(media)


@contextmanager
def open_journal(
    config: Config,
    run: Path,
    *,
    is_main: bool,
    wandb_id: str | None,
    console: Sink | None = None,
    resume_step: int | None = None,
) -> Iterator[Journal]:
    """The journal of a run folder. With `resume_step`, points that a dead run logged after that step leave the file."""
    if not is_main:
        yield Journal([])
        return
    sinks: list[Sink] = [console] if console else []
    sinks.append(JsonLines(run / METRICS, resume_step))
    wandb_folder = None
    if config.tracking != "none":
        tracker: Sink = find_tracker(config.tracking)(config, run, wandb_id)
        sinks.append(tracker)
        wandb_id, wandb_folder = tracker.id or wandb_id, tracker.folder
    try:
        yield Journal(sinks, wandb_id, wandb_folder)
    finally:
        for sink in reversed(sinks):
            sink.close()
