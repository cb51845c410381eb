"""The optimizer's momentum by parameter name, whole, wherever ZeRO keeps it.

In: a DeepSpeed engine. Out: an `OptimizerState`, which fits any number of ranks and any ZeRO stage. At stages 1 and 2
each rank holds a slice of one long vector of all parameters of a group (DeepSpeed's `_hp_mapping` tells which).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

MOMENTUM = "momentum_buffer"  # torch.optim.SGD's name for it


@dataclass(frozen=True)
class OptimizerState:
    """`momentum` has a float32 tensor for each parameter, shaped as it, or nothing before the first step and for SGD
    without momentum; `velocity_lr` is the learning rate of the last step (optim.PapersSGD)."""

    momentum: dict[str, torch.Tensor] = field(default_factory=dict)
    velocity_lr: float | None = None


def collect(engine: Any, keep: bool = True) -> OptimizerState:
    """A copy of the state of all ranks together, on the host; without momentum on ranks that do not `keep` it. Called
    by all."""
    optimizer = _sgd(engine)
    group = optimizer.param_groups[0]
    if not group["momentum"] or not optimizer.state:
        return OptimizerState({}, group.get("velocity_lr"))
    momentum = {}
    for name, parameter in _trained(engine):
        if engine.zero_optimization():
            whole = torch.zeros_like(parameter, dtype=torch.float32).flatten()
            for mine, there in _slices(optimizer, parameter):
                whole.narrow(0, there.start, there.numel).copy_(mine)
            dist.all_reduce(whole)
            whole = whole.view(parameter.shape)
        elif MOMENTUM in optimizer.state[parameter]:
            whole = optimizer.state[parameter][MOMENTUM]
        else:
            continue  # it has had no gradient
        if keep:
            momentum[name] = whole.detach().to("cpu", copy=True).contiguous()
    return OptimizerState(momentum, group.get("velocity_lr"))


def restore(engine: Any, state: OptimizerState) -> None:
    """Give each rank its part. Raises ValueError if `state` is of another network."""
    optimizer = _sgd(engine)
    if state.velocity_lr is not None:
        for group in optimizer.param_groups:
            group["velocity_lr"] = state.velocity_lr
    trained = dict(_trained(engine))
    for name, value in state.momentum.items():
        shape = tuple(trained[name].shape) if name in trained else "not trained"
        if shape != tuple(value.shape):
            raise ValueError(
                f"its momentum of {name} is {tuple(value.shape)}, the parameter is {shape}. Set the model back to the "
                f"one that was trained, or start from the weights alone with model.weights"
            )
    if not state.momentum:
        return
    if not engine.zero_optimization():
        for name, value in state.momentum.items():
            # Laid out as the weight is, since the fused kernel wants them alike.
            optimizer.state[trained[name]][MOMENTUM] = torch.empty_like(trained[name]).copy_(value)
        return
    for group in optimizer.param_groups:
        (flat,) = group["params"]
        optimizer.state[flat][MOMENTUM] = torch.zeros_like(flat)
    for name, value in state.momentum.items():
        for mine, there in _slices(optimizer, trained[name]):
            mine.copy_(value.flatten().narrow(0, there.start, there.numel))


def _trained(engine: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, weight) for name, weight in engine.module.named_parameters() if weight.requires_grad]


def _slices(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> Iterator[tuple[torch.Tensor, Any]]:
    """This rank's slice of a parameter's momentum, and which elements it is (`start`, `numel`); nothing if all of it
    lies on other ranks."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is not None:
        (flat,) = optimizer.param_groups[mapping.param_group_index]["params"]
        here = mapping.hp_fragment_address
        yield optimizer.state[flat][MOMENTUM].narrow(0, here.start, here.numel), mapping.lp_fragment_address


def _sgd(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer
