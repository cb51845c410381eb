"""What became of every image of a set: found on any rank, put together by one reduction, the same on all.

In: probabilities and labels of a batch. Out: for each view the five likeliest classes of every image with their
probabilities, and the label's. Each rank fills the rows of the images that it has seen, all others are zero, and
integers add up exactly: so the bits of the result do not depend on the number of ranks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pipeline.evaluation.score import TOP, Score

SMALLEST = 5e-324  # probability in a loss
NO_CLASS = -1  # in place of a class: fewer than five classes, an image that was not scored, a row of NaN
_FIRST = 3  # columns before the views': seen, scored, the number of outputs
_OF_VIEW = TOP + 2 * (TOP + 1)  # int32 columns; a float64 takes two


@dataclass(frozen=True)
class Outcome:
    """Of one view: classes int32 [N, 5], likeliest first, their probabilities float64 [N, 5], and the label's [N]."""

    classes: np.ndarray
    probabilities: np.ndarray
    label_probability: np.ndarray

    def errors(self, labels: np.ndarray, scored: np.ndarray, top: int) -> np.ndarray:
        """Bool [N]: whether the label is not among the `top` likeliest classes, for images that were scored."""
        return scored & ~(self.classes[:, :top] == labels[:, None]).any(axis=1)


@dataclass(frozen=True)
class Outcomes:
    """Of all N images: `labels` int64 [N], outputs of the network; `scored` bool [N], false where an image could not be
    decoded; an `Outcome` for each view; how many classes the networks know."""

    labels: np.ndarray
    scored: np.ndarray
    views: dict[str, Outcome]
    num_outputs: int

    def scores(self) -> dict[str, Score]:
        """The score of each view."""
        seen = int(self.scored.sum())
        of_views = {}
        for view, outcome in self.views.items():
            wrong = [int(outcome.errors(self.labels, self.scored, top).sum()) for top in (1, TOP)]
            of_labels = outcome.label_probability[self.scored].tolist()
            loss = -math.fsum(math.log(max(p, SMALLEST)) for p in of_labels) / max(seen, 1)
            of_five = seen - wrong[1] if self.num_outputs > TOP else None
            of_views[view] = Score(seen, seen - wrong[0], of_five, loss)
        return of_views


class Accumulator:
    """This rank's part, an int32 row an image on the device; floats are kept as their bits, which add to zeros
    exactly."""

    def __init__(self, labels: np.ndarray, views: list[str], device: torch.device):
        self.labels, self.views = labels, views
        self._labels = torch.from_numpy(np.array(labels)).to(device)
        self.rows = torch.zeros(len(labels), _FIRST + _OF_VIEW * len(views), dtype=torch.int32, device=device)

    def add(self, ids: torch.Tensor, scored: torch.Tensor, probabilities: list[torch.Tensor]) -> None:
        """The images of `ids` int64 [n]: `scored` bool [n]; probabilities float64 [n, classes] of each view."""
        columns = [torch.ones_like(scored), scored, torch.full_like(ids, probabilities[0].shape[1])]
        labels = self._labels[ids]
        for of_view in probabilities:
            top, classes = of_view.topk(min(TOP, of_view.shape[1]), dim=1)
            # NaN sorts first, and would else be right by chance.
            unknown = ~scored | of_view.isnan().any(dim=1)
            classes = classes.masked_fill(unknown[:, None], NO_CLASS)
            top, classes = _widened(top, 0), _widened(classes, NO_CLASS)
            of_label = of_view.gather(1, labels[:, None])
            columns += [*classes.unbind(1), *_bits(top).unbind(1), *_bits(of_label).unbind(1)]
        self.rows.index_add_(0, ids, torch.stack([column.to(torch.int32) for column in columns], dim=1))

    def reduced(self) -> Outcomes:
        """All ranks' parts together, called by all of them. Raises RuntimeError unless each id was seen once."""
        dist.all_reduce(self.rows)
        rows = self.rows.cpu().numpy()
        wrong = np.flatnonzero(rows[:, 0] != 1)
        if len(wrong):
            raise RuntimeError(
                f"evaluation is not exact: {len(wrong)} samples not seen once, ids {wrong[:10].tolist()} ..."
            )
        views = {}
        for number, view in enumerate(self.views):
            of_view = np.ascontiguousarray(rows[:, _FIRST + number * _OF_VIEW : _FIRST + (number + 1) * _OF_VIEW])
            numbers = of_view[:, TOP:].copy().view(np.float64)
            views[view] = Outcome(of_view[:, :TOP], numbers[:, :TOP], numbers[:, TOP])
        return Outcomes(self.labels, rows[:, 1] == 1, views, int(rows[:, 2].max()))


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32)


def _widened(columns: torch.Tensor, fill: float) -> torch.Tensor:
    return torch.nn.functional.pad(columns, (0, TOP - columns.shape[1]), value=fill)
