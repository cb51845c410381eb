"""One place that a run is logged to. A sink does what it can, and leaves the rest out."""

from pipeline.tracking.points import Media, Point


class Sink:
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
