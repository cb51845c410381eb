"""Momentum SGD, and which parameters decay.

In: a model and the config's optimizer section. Out: a torch.optim.SGD, or the papers' own form of it. The papers write
v = 0.9 v - 5e-4 lr w - lr g; w += v, with the learning rate inside v; PyTorch keeps it outside. Both agree while the
learning rate stands still and part for some dozen steps after it changes: when it drops, PyTorch's velocity is scaled
down at once, the papers' one still carries the old rate and decays by 0.9 a step.
"""

import torch
from torch import nn

from pipeline.config import Optimizer


def build(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """SGD with two groups: weights, and biases with normalisation layers, each with its own weight decay."""
    decay_other = config.weight_decay if config.weight_decay_bias_norm is None else config.weight_decay_bias_norm
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": decay_other}]
    groups = [group for group in groups if group["params"]]
    options: dict = {"lr": config.lr, "momentum": config.momentum, "fused": weights[0].is_cuda}
    if config.lr_in_velocity:
        return PapersSGD(groups, **options)
    return torch.optim.SGD(groups, nesterov=config.nesterov, **options)


class PapersSGD(torch.optim.SGD):
    """v = momentum v - weight_decay lr w - lr g; w += v (Krizhevsky et al. 2012, section 5; VGG section 3.1).

    PyTorch's buffer is kept, which is -v over the learning rate that v was made with. So when the rate changes, the
    momentum of one step is multiplied by old over new, and PyTorch's fused kernel does the rest: one pass over the
    weights, where the formula in four lines takes four.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. There is no closure: the gradients are there. Learning rates must be above 0."""
        momenta = [group["momentum"] for group in self.param_groups]
        for group in self.param_groups:
            group["momentum"] *= group.get("velocity_lr", group["lr"]) / group["lr"]
        super().step()
        for group, momentum in zip(self.param_groups, momenta, strict=True):
            group["momentum"], group["velocity_lr"] = momentum, group["lr"]
