"""Gradients averaged over ranks while the backward pass goes on, each as soon as it is there.

In: a network. Out: averaged gradients, when `finish` returns. This is ZeRO stage 0, where DeepSpeed itself reduces when
all gradients are there, through a copy, and even in one process: 0.89 to 0.94 of a plain loop's speed (BENCHMARKS.md).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from pipeline.runtime import Runtime
from pipeline.stopwatch import Stopwatch

BUCKET = 2**20  # elements: 20 of VGG-16's 32 gradients are below 1 MB, and every reduction has a price of its own


class Reducer:
    """Reduces when hooks find gradients ready and `active` is set, as it is in a step's last micro-step; in `dtype` if
    that is not the gradient's own. `communication` has the time in which nothing else went on, waiting for slower ranks
    included.

    Gradients go in fixed buckets, from the last parameter to the first, each bucket when it and those before it are
    ready: so all ranks reduce the same in the same order, in whatever order their hooks come. A parameter that gets no
    gradient must get none on all ranks.
    """

    def __init__(self, module: nn.Module, runtime: Runtime, dtype: torch.dtype | None = None):
        self.runtime, self.dtype = runtime, dtype
        self.active = True
        self.communication = Stopwatch(runtime.device)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._buckets = _buckets(trained[::-1])
        self._number_of = {parameter: number for number, bucket in enumerate(self._buckets) for parameter in bucket}
        self._under_way: list[tuple[dist.Work, torch.Tensor, list[torch.Tensor]]] = []
        self._start_over()
        if runtime.world > 1:
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(self._ready)

    def finish(self) -> None:
        """Go on with averaged gradients. On a GPU its queue waits, not this process."""
        if self.runtime.world == 1 or not self.active:
            return
        for bucket in self._buckets[self._next :]:  # of which some parameters got no gradient
            self._begin(bucket)
        with self.communication:
            for work, flat, gradients in self._under_way:
                work.wait()
                if flat is not gradients[0]:
                    parts = flat.split([gradient.numel() for gradient in gradients])
                    views = [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
                    torch._foreach_copy_(gradients, views)
        self._start_over()

    def _start_over(self) -> None:
        self._under_way.clear()
        self._missing = [len(bucket) for bucket in self._buckets]
        self._next = 0  # bucket to reduce

    def _ready(self, parameter: torch.Tensor) -> None:
        if not self.active:
            return
        self._missing[self._number_of[parameter]] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._begin(self._buckets[self._next])
            self._next += 1

    def _begin(self, bucket: list[torch.Tensor]) -> None:
        """Start one reduction of all gradients of a bucket."""
        gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
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


def _buckets(parameters: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Neighbours of one type together, up to BUCKET elements."""
    buckets: list[list[torch.Tensor]] = []
    for parameter in parameters:
        last = buckets[-1] if buckets else []
        full = sum(each.numel() for each in last) + parameter.numel() > BUCKET
        if not last or full or last[0].dtype != parameter.dtype:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets
