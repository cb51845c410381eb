"""One class per image. Counting, not averaging: integer counts of right answers on the device, turned into errors once,
at the end.

In: logits [n, classes], labels [n], and which rows are valid. Out: a loss; float64 tensors [seen, correct@1, correct@5,
loss sum] that add up over batches and ranks; counts below 2^53 stay exact in them; errors of the validation set.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import Config
from pipeline.data.fields import Labels
from pipeline.data.index import Index
from pipeline.evaluation.evaluate import ScoredModel, evaluate, require_views
from pipeline.evaluation.score import TOP, Score
from pipeline.runtime import Runtime

IGNORED = -1  # torch's ignore_index


class Classification(Labels):
    """Outputs are logits, float32 [n, classes]; targets are labels, int64 [n]."""

    num_counts: ClassVar[int] = 4

    def __init__(self, config: Config):
        self.config = config

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        labels = _known(targets, valid)
        smoothing = self.config.train.label_smoothing
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

    def require(self, network: nn.Module) -> None:
        """Raises UserError if the network has no dense form, and a view needs one."""
        require_views(network, self.config.data, self.config.evaluation.views)

    def evaluate(
        self, network: nn.Module, index: Index, *, runtime: Runtime, progress: Callable[[int], None]
    ) -> dict[str, dict[str, float]]:
        data, evaluation = self.config.data, self.config.evaluation
        outcomes = evaluate(
            [ScoredModel(network, data, evaluation.corners)],
            index,
            data,
            evaluation.views,
            runtime=runtime,
            micro_batch=evaluation.micro_batch,
            bf16=self.config.train.uses_bf16(runtime.on_gpu),
            progress=progress,
        )
        return {view: score.as_dict() for view, score in outcomes.scores().items()}

    def headline(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """The top-1 error of the first view."""
        return next(iter(scores.values()))["top1_error"]


def _known(labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A mask that indexes would make a GPU wait, and another reduction than ignore_index would round otherwise."""
    return torch.where(valid, labels, IGNORED)


def score(counts: torch.Tensor) -> Score:
    """A Score from the float64 [4] that `Classification.counts` sums up to, all ranks added."""
    seen, correct1, correct5, loss = counts.tolist()
    of_five = None if math.isnan(correct5) else int(correct5)
    return Score(int(seen), int(correct1), of_five, loss / max(seen, 1.0))
