"""Progress for the person at the terminal: a bar on a terminal, one line a logged point elsewhere.

In: points of the journal. Out: loss, images/s, data wait, learning rate and time left, in one line.
"""

import contextlib
import os
import re
import sys

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline.tracking import points as keys
from pipeline.tracking.points import Point
from pipeline.tracking.sink import Sink


class Console(Sink):
    """A progress bar on a terminal, one line a point elsewhere."""

    def __init__(self, first_step: int, total_steps: int):
        self.terminal = Terminal(soft_wrap=True, highlight=False)
        self.total_steps = total_steps
        self.num_logged = 0
        self.bar = None
        if self.terminal.is_terminal:
            columns = (BarColumn(10), MofNCompleteColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.terminal, transient=True)
            self.task = self.bar.add_task("first figures soon", total=total_steps, completed=first_step)
            self.bar.start()

    def log(self, point: Point) -> None:
        if keys.TRAIN_LOSS not in point:
            self.print_line(_describe_evaluation(point))
            return
        self.num_logged += 1
        left = self._left(point)
        if self.bar:
            self.bar.update(self.task, description=_describe_briefly(point) + left)
        else:
            self.print_line(_describe_training(point, self.total_steps) + left)

    def _left(self, point: Point) -> str:
        """The time that training needs yet, at the rate of the last steps. Unknown at the first point: its steps
        compiled kernels, filled caches and started threads (85 minutes were told of what took 32 s)."""
        if self.num_logged < 2:
            return ""
        left_s = int((self.total_steps - point[keys.STEP]) * point[keys.STEP_S])
        return f"  left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"

    def print_line(self, text: str) -> None:
        """Print a line. A log file on a full disk, say, ends the printing with a warning, not the run."""
        try:
            self.terminal.print(text, markup=False)
            sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in its buffer too
            with contextlib.suppress(OSError):
                print(
                    f"warning: standard output cannot be written ({error.strerror}); going on without it. "
                    f"metrics.jsonl has every point",
                    file=sys.stderr,
                    flush=True,
                )

    def advance(self) -> None:
        if self.bar:
            self.bar.advance(self.task)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _describe_training(point: Point, total_steps: int) -> str:
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    scores = [_score(key, point[key]) for key in point if key.startswith("train/")]
    first = next((score + "  " for score in scores if score), "")
    return (
        f"step {point[keys.STEP]:.0f}/{total_steps}  epoch {point[keys.EPOCH]:.2f}  loss {point[keys.TRAIN_LOSS]:.3f}  "
        f"{first}lr {point[keys.LEARNING_RATE]:.3g}  "
        f"{point[keys.IMAGES_PER_S]:,.0f} img/s  data wait {wait:.0%}"
    )


def _describe_briefly(point: Point) -> str:
    """What fits beside a bar in 80 columns."""
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    return f"loss {point[keys.TRAIN_LOSS]:.3f}  {point[keys.IMAGES_PER_S]:,.0f} img/s  wait {wait:.0%}"


def _describe_evaluation(point: Point) -> str:
    views: dict[str, list[str]] = {}
    for key, value in point.items():
        if key.startswith("eval/") and (score := _score(key, value, digits=2)):
            views.setdefault(key.split("/")[1], []).append(score)
    told = [f"{view}: " + ", ".join([first, *map(_short, others)]) for view, (first, *others) in views.items()]
    return f"step {point[keys.STEP]:.0f}  validation  " + "  ".join(told)


def _score(key: str, value: float, digits: int = 1) -> str:
    """A task's score in words: top1_error as top-1 error 12.3%. Of a loss and other quantities nothing."""
    name = key.rpartition("/")[2]
    if key in (keys.TRAIN_LOSS, keys.LEARNING_RATE) or name == "loss":
        return ""
    words = re.sub("^top([0-9])", "top-\\1", name).replace("_", " ")
    return f"{words} {value:.{digits}%}" if name.endswith("_error") else f"{words} {value:.4g}"


def _short(score: str) -> str:
    """Behind another error, that it is one needs no word."""
    return score.replace(" error ", " ")
