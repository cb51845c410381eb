"""Progress for the person at the terminal: a bar on a terminal, one line a logged point elsewhere.

In: points of the journal. Out: loss, images/s, data wait, learning rate and time left, in one line.
"""

import sys

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import journal as keys
from pipeline.journal import Point, Presentation


class Console:
    """A progress bar on a terminal, one line a point elsewhere."""

    def __init__(self, first_step: int, total_steps: int):
        self.terminal = Terminal(soft_wrap=True, highlight=False)
        self.total_steps = total_steps
        self.bar = None
        if self.terminal.is_terminal:
            columns = (BarColumn(10), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.terminal, transient=True)
            self.task = self.bar.add_task("first figures soon", total=total_steps, completed=first_step)
            self.bar.start()

    def log(self, point: Point) -> None:
        if keys.TRAIN_LOSS not in point:
            self.tell(_describe_evaluation(point))
        elif self.bar:
            self.bar.update(self.task, description=_describe_briefly(point))
        else:
            self.tell(_describe_training(point, self.total_steps))

    def tell(self, text: str) -> None:
        self.terminal.print(text, markup=False)
        sys.stdout.flush()

    def advance(self) -> None:
        if self.bar:
            self.bar.advance(self.task)

    def present(self, shown: Presentation) -> None: ...

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _describe_training(point: Point, total_steps: int) -> str:
    left_s = int((total_steps - point[keys.STEP]) * point[keys.STEP_S])
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    return (
        f"step {point[keys.STEP]:.0f}/{total_steps}  epoch {point[keys.EPOCH]:.2f}  loss {point[keys.TRAIN_LOSS]:.3f}  "
        f"top-1 error {point[keys.TRAIN_TOP1]:.1%}  lr {point[keys.LEARNING_RATE]:.3g}  "
        f"{point[keys.IMAGES_PER_S]:,.0f} img/s  data wait {wait:.0%}  "
        f"left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"
    )


def _describe_briefly(point: Point) -> str:
    """What fits beside a bar in 80 columns."""
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    return f"loss {point[keys.TRAIN_LOSS]:.3f}  {point[keys.IMAGES_PER_S]:,.0f} img/s  wait {wait:.0%}"


def _describe_evaluation(point: Point) -> str:
    names = [key.split("/")[1] for key in point if key.endswith("/top1_error")]
    scores = [
        f"{name}: top-1 error {point[f'eval/{name}/top1_error']:.2%}, top-5 {point[f'eval/{name}/top5_error']:.2%}"
        for name in names
    ]
    return f"step {point[keys.STEP]:.0f}  validation  " + "  ".join(scores)


class Bar:
    """Images done and time left while a set is scored; shown on a terminal alone."""

    def __init__(self, total: int, shown: bool):
        terminal = Terminal()
        columns = (TextColumn("scoring"), BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=terminal, transient=True, disable=not (shown and terminal.is_terminal))
        self.task = self.bar.add_task("", total=total)

    def advance(self, images: int) -> None:
        self.bar.advance(self.task, images)

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
