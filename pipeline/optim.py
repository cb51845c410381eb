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
    if config.lr_in_velocity:
        return PapersSGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=weights[0].is_cuda
    )


class PapersSGD(torch.optim.Optimizer):
    """v = momentum v - weight_decay lr w - lr g; w += v (Krizhevsky et al. 2012, section 5; VGG section 3.1)."""

    def __init__(self, groups: list[dict], lr: float, momentum: float):
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. There is no closure: the gradients are there."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                self.state[weight].setdefault("velocity", torch.zeros_like(weight))
            velocities = [self.state[weight]["velocity"] for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * group["lr"])
            torch._foreach_add_(velocities, [weight.grad for weight in weights], alpha=-group["lr"])
            torch._foreach_add_(weights, velocities)
