"""What a network is trained for, as far as the loop must know: the contract, and the task of a config.

A task makes targets of what its samples have beside their images, and of outputs and targets a loss, and counts that
add up over batches and ranks. Rows that are padding or could not be decoded are not `valid`: they have a target like
others, and must change neither. It scores a network on a set, and says which figure of that is the one that counts.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import nn

from pipeline import own
from pipeline.config import Config
from pipeline.data.fields import Targets
from pipeline.data.index import Index
from pipeline.runtime import Runtime


class Task(Targets, Protocol):
    num_counts: ClassVar[int]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """To be minimised, over the n rows of a micro-batch, float32 on the device: the sum over the valid ones over n,
        so a lost row costs one row. `valid` is bool [n]."""
        ...

    def counts(self, outputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Float64 [num_counts] on the device, which add up."""
        ...

    def scores(self, counts: torch.Tensor) -> dict[str, float]:
        """What is logged of counts of all ranks, by name. `loss` is among them."""
        ...

    def require(self, network: nn.Module) -> None:
        """Raises UserError if `network`, in evaluation mode, cannot be scored as the config wants it."""
        ...

    def evaluate(
        self, network: nn.Module, index: Index, *, runtime: Runtime, progress: Callable[[int], None]
    ) -> dict[str, dict[str, float]]:
        """Score `network`, on the device and in evaluation mode, on each image of a set once: by view, figures by name.
        `progress` is told how many images are done. Called by all ranks together; each sees its share of the images, so
        sums must be added over them (torch.distributed.all_reduce). Images of `eval_batches` are uint8: scale and
        normalise them as training does (data.mean, data.std)."""
        ...

    def headline(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """Of what `evaluate` returns, the figure that decides which checkpoint is the best, and when `plateau` lowers
        the learning rate: in 0..1, of which less is better."""
        ...


def task_of(config: Config) -> Task:
    """`classification` is class Classification of classification.py; a user's own is called with the config, too.
    Raises UserError if it is not there, or lacks a part of the contract."""
    task: Task = own.find_task(config.task)(config)
    return task
