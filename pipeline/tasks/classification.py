"""Counting, not averaging: integer counts of right answers on the device, turned into errors once, at the end.

In: logits [n, classes], labels [n], and which rows are valid. Out: a loss; float64 tensors [seen, correct@1, correct@5,
loss sum] that add up over batches and ranks; counts below 2^53 stay exact in them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

TOP = 5  # classes among which the label is looked for
IGNORED = -1  # torch's ignore_index


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


@dataclass(frozen=True)
class Classification:
    """One class an image. Outputs are logits, float32 [n, classes]; targets are labels, int64 [n]."""

    label_smoothing: float = 0.0
    num_counts: ClassVar[int] = 4

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        labels = _known(targets, valid)
        smoothing = self.label_smoothing
        summed = F.cross_entropy(outputs, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
        return summed / len(labels)

    def counts(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Valid rows, correct@1, correct@5, summed loss.

        With five classes and fewer correct@5 is NaN: the label is always among them. A row that holds NaN is wrong: NaN
        sorts first and would otherwise be right by chance.
        """
        log_probabilities, labels = outputs.log_softmax(dim=1), _known(targets, valid)
        num_classes = log_probabilities.shape[1]
        top = log_probabilities.topk(min(TOP, num_classes), dim=1).indices
        hits = (top == labels[:, None]) & ~log_probabilities.isnan().any(dim=1, keepdim=True)
        loss = F.nll_loss(log_probabilities.double(), labels, ignore_index=IGNORED, reduction="sum")
        of_five = hits.any(dim=1).sum().double()
        if num_classes <= TOP:
            of_five = torch.full_like(of_five, torch.nan)
        return torch.stack([valid.sum().double(), hits[:, 0].sum().double(), of_five, loss])

    def scores(self, counts: torch.Tensor) -> dict[str, float]:
        return score(counts).as_dict()


def _known(labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A mask that indexes would make a GPU wait, and another reduction than ignore_index would round otherwise."""
    return torch.where(valid, labels, IGNORED)


def score(counts: torch.Tensor) -> Score:
    """A Score from the float64 [4] that `Classification.counts` sums up to, all ranks added."""
    seen, correct1, correct5, loss = counts.tolist()
    of_five = None if math.isnan(correct5) else int(correct5)
    return Score(int(seen), int(correct1), of_five, loss / max(seen, 1.0))
