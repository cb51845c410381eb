"""The DeepSpeed engine: forward, backward, gradient reduction, step. The only file that imports deepspeed.

In: a model, an optimizer, the config. Out: a DeepSpeed engine and a `Stepper` that takes one optimizer step. The
DeepSpeed dictionary is derived from the config and has no second home. ZeRO stays at stage 0: for 60 to 144 M
parameters it saves little, and only stage 0 resumes at another number of processes.
"""

import os
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import Config
from pipeline.runtime import Runtime


def deepspeed_config(config: Config, world: int, on_gpu: bool) -> dict[str, Any]:
    """The dictionary that DeepSpeed gets.

    `gradient_clipping` is always given, since DeepSpeed clips to norm 1 without it. bf16 goes through `torch_autocast`
    because `bf16.enabled` at stage 0 takes a hidden optimizer step at construction (seen in DeepSpeed 0.19.8).
    """
    micro_batch, micro_steps = config.train.split(world)
    return {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": 0},
        "torch_autocast": {"enabled": uses_bf16(config, on_gpu), "dtype": "bfloat16"},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }


def uses_bf16(config: Config, on_gpu: bool) -> bool:
    return config.train.precision == "bf16" or (config.train.precision == "auto" and on_gpu)


def build(model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, runtime: Runtime) -> Any:
    """A DeepSpeed engine around `model`, whose weights become rank 0's on all ranks."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if runtime.on_gpu else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(runtime.local_rank))  # it asserts that a launcher set this
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")  # its INFO lines come once a rank and say what the resolved config says
    # Without a GPU, DeepSpeed would compile a communication library for minutes; gloo is there already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, runtime.world, runtime.on_gpu),
        dist_init_required=False,
    )
    engine.enable_backward_allreduce = False  # Stepper does it, to time it
    return engine


class Stepper:
    """Takes micro-batches to optimizer steps and tells how long the gradient reduction took.

    Dropout draws from a generator that is seeded anew for each micro-step and rank, so a resumed run draws the masks of
    an uninterrupted one.
    """

    def __init__(self, engine: Any, config: Config, runtime: Runtime):
        self.engine = engine
        self.config = config
        self.runtime = runtime
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def micro_step(self, images: torch.Tensor, labels: torch.Tensor, step: int, micro_step: int) -> torch.Tensor:
        """Forward and backward of one micro-batch. Returns the logits, float32 [n, classes], detached.

        The loss is the sum over rows over the number of rows, padding included, so a lost row costs one row.
        """
        seed = (self.config.seed, step, micro_step, self.runtime.rank)
        torch.manual_seed(_seed_of(*seed))
        logits = self.engine(images).float()
        smoothing = self.config.train.label_smoothing
        loss = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        self.engine.backward(loss / len(labels))
        if self.engine.is_gradient_accumulation_boundary():
            self._timed_reduction()
        self.engine.step()
        return logits.detach()

    def _timed_reduction(self) -> None:
        if not self.runtime.on_gpu:
            start = time.perf_counter()
            self.engine.allreduce_gradients()
            self._seconds += time.perf_counter() - start
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        self.engine.allreduce_gradients()
        events[1].record()
        self._events.append(events)

    def take_communication_s(self) -> float:
        """Seconds spent in gradient reductions since the last call, waiting for slower ranks included. Synchronises."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1e3
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _seed_of(*numbers: int) -> int:
    from pipeline.data.order import fold

    return int(fold(*numbers)) >> 1  # torch wants a signed 64-bit number
