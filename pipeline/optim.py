"""Momentum SGD, and which parameters decay.

In: a model and the config's optimizer section. Out: a torch.optim.SGD. The papers write v = 0.9 v - 5e-4 lr w - lr g;
w += v, with the learning rate inside v; PyTorch keeps it outside. Both agree while the learning rate stands still and
part for some steps after it drops, when PyTorch's velocity is scaled down at once.
"""

import torch
from torch import nn

from pipeline.config import Optimizer


def build(model: nn.Module, config: Optimizer) -> torch.optim.SGD:
    """SGD with two groups: weights, and biases with normalisation layers, each with its own weight decay."""
    decay_other = config.weight_decay if config.weight_decay_bias_norm is None else config.weight_decay_bias_norm
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": decay_other}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=weights[0].is_cuda,
    )
