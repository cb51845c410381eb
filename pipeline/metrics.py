"""Counting, not averaging: integer counts of right answers on the device, turned into errors once, at the end.

In: log-probabilities [n, classes] and labels [n], -1 for rows to ignore. Out: float64 tensors [seen, correct@1,
correct@5, loss sum] that add up over batches and ranks; counts below 2^53 stay exact in them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

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


def count(log_probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Float64 [4]: seen, correct@1, correct@5, summed loss over the rows whose label is not -1.

    With five classes and fewer correct@5 is NaN: the label is always among them. A row that holds NaN is wrong: NaN
    sorts first and would otherwise be right by chance.
    """
    valid = labels >= 0
    num_classes = log_probabilities.shape[1]
    top = log_probabilities.topk(min(TOP, num_classes), dim=1).indices
    hits = (top == labels[:, None]) & ~log_probabilities.isnan().any(dim=1, keepdim=True)
    loss = F.nll_loss(log_probabilities.double(), labels, ignore_index=-1, reduction="sum")
    of_five = hits.any(dim=1).sum().double()
    if num_classes <= TOP:
        of_five = torch.full_like(of_five, torch.nan)
    return torch.stack([valid.sum().double(), hits[:, 0].sum().double(), of_five, loss])


def score(counts: torch.Tensor) -> Score:
    """A Score from the float64 [4] that `count` sums up to, all ranks added."""
    seen, correct1, correct5, loss = counts.tolist()
    of_five = None if math.isnan(correct5) else int(correct5)
    return Score(int(seen), int(correct1), of_five, loss / max(seen, 1.0))


def wilson(wrong: int, seen: int) -> tuple[float, float]:
    """The 95 % interval of the error, as fractions (Wilson 1927): of a set that is a sample of images like them."""
    if not seen:
        return 0.0, 1.0
    z = 1.959964  # of 95 %
    error, weight = wrong / seen, z * z / seen
    middle = (error + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (error * (1 - error) / seen + weight / 4 / seen) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
