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
    """The state of all ranks together, on the host; without momentum on ranks that do not `keep` it. Called by all."""
    optimizer = _sgd(engine)
    group = optimizer.param_groups[0]
    if not group["momentum"] or not optimizer.state:
        return OptimizerState({}, group.get("velocity_lr"))
    momentum = {}
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization():
            whole = torch.zeros_like(parameter, dtype=torch.float32).flatten()
            for mine, there in _slices(optimizer, parameter):
                whole.narrow(0, there.start, there.numel).copy_(mine)
            dist.all_reduce(whole)
            whole = whole.view(parameter.shape)
        else:
            whole = optimizer.state[parameter][MOMENTUM]
        if keep:
            momentum[name] = whole.detach().cpu().contiguous()
    return OptimizerState(momentum, group.get("velocity_lr"))


def restore(engine: Any, state: OptimizerState) -> None:
    """Give each rank its part. Raises ValueError if `state` is of another network."""
    optimizer = _sgd(engine)
    if state.velocity_lr is not None:
        for group in optimizer.param_groups:
            group["velocity_lr"] = state.velocity_lr
    if not state.momentum:
        return
    shapes = {name: tuple(parameter.shape) for name, parameter in engine.module.named_parameters()}
    theirs = {name: tuple(value.shape) for name, value in state.momentum.items()}
    if shapes != theirs:
        differing = sorted(name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name))
        name = differing[0]
        raise ValueError(
            f"the momentum of {name} is of shape {theirs.get(name)}, its parameter of {shapes.get(name)}. Set the "
            f"model back to the one that was trained, or start from the weights alone with model.weights"
        )
    if not engine.zero_optimization():
        for name, parameter in engine.module.named_parameters():
            # Laid out as the weight is, since the fused kernel wants them alike.
            optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter).copy_(state.momentum[name])
        return
    for group in optimizer.param_groups:
        (flat,) = group["params"]
        optimizer.state[flat][MOMENTUM] = torch.zeros_like(flat)
    for name, parameter in engine.module.named_parameters():
        for mine, there in _slices(optimizer, parameter):
            mine.copy_(state.momentum[name].flatten().narrow(0, there.start, there.numel))


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
