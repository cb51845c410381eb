"""Progress for the person at the terminal: a bar on a terminal, one line a logged point elsewhere.

In: points of the journal. Out: loss, images/s, data wait, learning rate and time left, in one line.
"""

import contextlib
import os
import sys

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline import journal as keys
from pipeline.journal import Point, Presentation


class Console:
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
            self.tell(_describe_evaluation(point))
            return
        self.num_logged += 1
        left = self._left(point)
        if self.bar:
            self.bar.update(self.task, description=_describe_briefly(point) + left)
        else:
            self.tell(_describe_training(point, self.total_steps) + left)

    def _left(self, point: Point) -> str:
        """The time that training needs yet, at the rate of the last steps. Unknown at the first point: its steps
        compiled kernels, filled caches and started threads (85 minutes were told of what took 32 s)."""
        if self.num_logged < 2:
            return ""
        left_s = int((self.total_steps - point[keys.STEP]) * point[keys.STEP_S])
        return f"  left {left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02}"

    def tell(self, text: str) -> None:
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

    def present(self, shown: Presentation) -> None: ...

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _describe_training(point: Point, total_steps: int) -> str:
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    return (
        f"step {point[keys.STEP]:.0f}/{total_steps}  epoch {point[keys.EPOCH]:.2f}  loss {point[keys.TRAIN_LOSS]:.3f}  "
        f"top-1 error {point[keys.TRAIN_TOP1]:.1%}  lr {point[keys.LEARNING_RATE]:.3g}  "
        f"{point[keys.IMAGES_PER_S]:,.0f} img/s  data wait {wait:.0%}"
    )


def _describe_briefly(point: Point) -> str:
    """What fits beside a bar in 80 columns."""
    wait = point[keys.DATA_WAIT_S] / point[keys.STEP_S]
    return f"loss {point[keys.TRAIN_LOSS]:.3f}  {point[keys.IMAGES_PER_S]:,.0f} img/s  wait {wait:.0%}"


def _describe_evaluation(point: Point) -> str:
    names = [key.split("/")[1] for key in point if key.endswith("/top1_error")]
    scores = []
    for name in names:
        of_five = point.get(f"eval/{name}/top5_error")
        scores.append(
            f"{name}: top-1 error {point[f'eval/{name}/top1_error']:.2%}"
            + ("" if of_five is None else f", top-5 {of_five:.2%}")
        )
    return f"step {point[keys.STEP]:.0f}  validation  " + "  ".join(scores)
