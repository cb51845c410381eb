"""What counts of right answers say: errors and loss.

In: integer counts over images. Out: fractions.
"""

from dataclasses import dataclass

TOP = 5  # classes among which the label is looked for


@dataclass(frozen=True)
class Score:
    """Counts over `seen` images; errors are fractions in 0..1 (1 if none was seen), loss is the mean cross-entropy.

    Among TOP outputs and fewer the label always is, so there is no `correct5`, and no error of it: None.
    """

    seen: int
    correct1: int
    correct5: int | None
    loss: float

    @property
    def top1_error(self) -> float:
        return 1.0 - self.correct1 / max(self.seen, 1)

    @property
    def top5_error(self) -> float | None:
        return None if self.correct5 is None else 1.0 - self.correct5 / max(self.seen, 1)

    def as_dict(self) -> dict[str, float]:
        """By the names that the journal uses."""
        of_five = {} if self.top5_error is None else {"top5_error": self.top5_error}
        return {"top1_error": self.top1_error, **of_five, "loss": self.loss}
