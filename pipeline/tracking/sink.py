"""One place that a run is logged to. A sink does what it can, and leaves the rest out.

A tracker (config.tracking) is made with the config, the run's folder, and the `id` that it had when the run was begun.
"""

from pipeline.tracking.points import Media, Point


class Sink:
    id: str | None = None  # of the run, where this place gives it one
    folder: str | None = None  # on this machine, where it keeps one

    def log(self, point: Point) -> None:
        """A point; it holds `step`."""

    def print_line(self, text: str) -> None:
        """A line for the person at the console."""

    def advance(self) -> None:
        """One more step is done."""

    def log_media(self, media: Media) -> None:
        """Tables and pictures."""

    def close(self) -> None:
        """Nothing is logged any more."""
