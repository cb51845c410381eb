"""Gradients averaged over ranks while the backward pass goes on, each as soon as it is there.

In: a network. Out: averaged gradients, when `finish` returns. This is ZeRO stage 0, where DeepSpeed itself reduces when
all gradients are there, through a copy, and even in one process: 0.89 to 0.94 of a plain loop's speed (BENCHMARKS.md).
"""

import torch
import torch.distributed as dist
from torch import nn

from pipeline.runtime import Runtime
from pipeline.stopwatch import Stopwatch

BUCKET = 2**20  # elements: 20 of VGG-16's 32 gradients are below 1 MB, and every reduction has a price of its own


class Reducer:
    """Reduces when hooks find a gradient ready and `active` is set, as it is in a step's last micro-step; in `dtype` if
    that is not the gradient's own. `communication` has the time in which nothing else went on, waiting for slower ranks
    included. All ranks must run the same network, so that their hooks come in the same order."""

    def __init__(self, module: nn.Module, runtime: Runtime, dtype: torch.dtype | None = None):
        self.runtime, self.dtype = runtime, dtype
        self.active = True
        self.communication = Stopwatch(runtime.device)
        self._small: list[torch.Tensor] = []
        self._under_way: list[tuple[dist.Work, torch.Tensor, list[torch.Tensor]]] = []
        if runtime.world > 1:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._ready)

    def finish(self) -> None:
        """Go on with averaged gradients. On a GPU its queue waits, not this process."""
        self._begin(self._small)
        self._small = []
        if not self._under_way:
            return
        with self.communication:
            for work, flat, gradients in self._under_way:
                work.wait()
                if flat is not gradients[0]:
                    parts = flat.split([gradient.numel() for gradient in gradients])
                    views = [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
                    torch._foreach_copy_(gradients, views)
        self._under_way.clear()

    def _ready(self, parameter: torch.Tensor) -> None:
        if not self.active:
            return
        gradient = parameter.grad
        assert gradient is not None
        if gradient.numel() >= BUCKET:
            self._begin([gradient])
            return
        self._small.append(gradient)
        if sum(small.numel() for small in self._small) >= BUCKET:
            self._begin(self._small)
            self._small = []

    def _begin(self, gradients: list[torch.Tensor]) -> None:
        """Start one reduction of all of `gradients`."""
        if not gradients:
            return
        if len(gradients) == 1 and self.dtype in (None, gradients[0].dtype):
            flat = gradients[0]
        else:
            flat = torch.cat([gradient.flatten() for gradient in gradients]).to(self.dtype or gradients[0].dtype)
        operation = dist.ReduceOp.AVG
        if not self.runtime.on_gpu:  # gloo has no average
            flat.div_(self.runtime.world)
            operation = dist.ReduceOp.SUM
        work = dist.all_reduce(flat, operation, async_op=True)
        assert work is not None
        self._under_way.append((work, flat, gradients))
