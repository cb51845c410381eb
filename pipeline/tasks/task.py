"""What a network is trained for, as far as the loop must know: the contract, and the task of a config.

A task turns outputs and targets into a loss, and into counts that add up over batches and ranks. Rows that are padding
or could not be decoded are not `valid`: they have a target like others, and must change neither.
"""

from typing import ClassVar, Protocol

import torch

from pipeline.config import Config
from pipeline.tasks.classification import Classification


class Task(Protocol):
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


def task_of(config: Config) -> Task:
    return Classification(config.train.label_smoothing)
