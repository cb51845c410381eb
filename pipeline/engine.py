"""The DeepSpeed engine: forward, backward, gradient reduction, step. The only file that imports deepspeed.

In: a model, an optimizer, the config. Out: a DeepSpeed engine and a `Stepper` that takes one optimizer step. The
DeepSpeed dictionary is derived from the config and has no second home. At ZeRO stage 0, the default, gradients are
reduced by `pipeline.reduction`; at stages 1 and 2 by DeepSpeed, which then keeps only a part of the optimizer's state
on each rank. DeepSpeed's own checkpoints (pickles, bound to a stage and, above 0, to a number of ranks) are not used.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from models.compiler import builds_triton
from pipeline.config import Config
from pipeline.reduction import Reducer
from pipeline.rng import fold
from pipeline.runtime import Runtime
from pipeline.tasks.task import task_of


def deepspeed_config(config: Config, world: int, on_gpu: bool) -> dict[str, Any]:
    """The dictionary that DeepSpeed gets.

    `gradient_clipping` is always given, since DeepSpeed clips to norm 1 without it. bf16 goes through `torch_autocast`
    because `bf16.enabled` at stage 0 takes a hidden optimizer step at construction (seen in DeepSpeed 0.19.8).
    """
    micro_batch, micro_steps = config.train.split(world)
    settings: dict[str, Any] = {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": config.train.zero_stage},
        "torch_autocast": {"enabled": config.train.uses_bf16(on_gpu), "dtype": "bfloat16"},
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice in each micro-step
    }
    if config.train.zero_stage:
        settings["zero_allow_untested_optimizer"] = True  # SGD: tested against stage 0 (tests/distributed/test_zero.py)
        settings["zero_optimization"]["overlap_comm"] = on_gpu
        settings["communication_data_type"] = config.train.reduction
        if config.train.reduction == "fp32":  # else it reduces gradients of linear layers and convolutions in bf16
            settings["torch_autocast"]["lower_precision_safe_modules"] = []
    for key, value in config.deepspeed.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    return settings


def build(model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, runtime: Runtime) -> Any:
    """A DeepSpeed engine around `model`, whose weights become rank 0's on all ranks."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if runtime.on_gpu else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(runtime.local_rank))  # it asserts that a launcher set this
    import deepspeed
    from deepspeed.utils import logger

    if not config.deepspeed.keys() - {"flops_profiler", "zero_optimization"}:
        logger.setLevel("ERROR")  # its INFO lines come once a rank, or in each step, and say what the config says
    # Without a GPU, DeepSpeed would compile a communication library for minutes; gloo is there already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed's own calls, of which torch 2.14 warns once a rank.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=deepspeed_config(config, runtime.world, runtime.on_gpu),
        dist_init_required=False,
    )
    if config.train.zero_stage == 0:
        engine.enable_backward_allreduce = False  # Stepper does it
    if runtime.on_gpu and config.train.zero_stage == 0:  # above, weights are views into one vector
        use_channels_last(engine.module)
    if _on_all_ranks(compiles(config, runtime.on_gpu), runtime):
        compile_module(engine.module, by_part=runtime.world > 1)
    return engine


def compiles(config: Config, on_gpu: bool) -> bool:
    """Whether torch.compile is used: as the config says, else on a GPU where kernels can be built."""
    return on_gpu and builds_triton() if config.train.compile is None else config.train.compile


def _on_all_ranks(answer: bool, runtime: Runtime) -> bool:
    """Whether all ranks answer yes: a machine without a C compiler must not compute otherwise than the rest."""
    flag = torch.tensor(int(answer), device=runtime.device)
    if runtime.world > 1:
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


def use_channels_last(module: nn.Module) -> None:
    """Lay out convolution weights as their images are, or cuDNN copies weights and gradients at each step. To be called
    after `deepspeed.initialize`, whose broadcast of the weights fails on this layout."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_module(module: nn.Module, by_part: bool) -> None:
    """torch.compile the network in place, so that parameters keep their names: whole, or each child by itself.

    The hooks that reduce gradients run when the backward pass of a compiled graph is through. With one graph for the
    whole network that is the end; with features and classifier apart, the classifier's gradients (95 % of AlexNet's)
    are reduced while the features' are computed.
    """
    for part in module.children() if by_part else [module]:
        if any(True for _ in part.parameters()):
            part.forward = torch.compile(_own_frame(part.forward))  # type: ignore[method-assign]


def _own_frame(forward: Callable[..., Any]) -> Callable[..., Any]:
    """torch 2.11 compiles nothing of a function that is torch's own, such as nn.Sequential's, but what it calls."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # A code object of its own, since torch compiles one at most eight times.
    call.__code__ = call.__code__.replace(co_name=f"call_{id(forward)}")
    return call


class Stepper:
    """Takes micro-batches to optimizer steps. `communication` has the time in which only gradient reductions went on;
    it is None at ZeRO stages 1 and 2, where DeepSpeed reduces.

    Dropout draws from a generator that is seeded anew for each micro-step and rank, so a resumed run draws the masks of
    an uninterrupted one.
    """

    def __init__(self, engine: Any, config: Config, runtime: Runtime):
        self.engine = engine
        self.config = config
        self.runtime = runtime
        self.task = task_of(config)
        self.reducer: Reducer | None = None
        if config.train.zero_stage == 0:
            dtype = torch.bfloat16 if config.train.reduction == "bf16" else None
            self.reducer = Reducer(engine.module, runtime, dtype)
        self.communication = self.reducer.communication if self.reducer else None

    def micro_step(
        self, images: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor, step: int, micro_step: int
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, after the last one of a step the update. Returns the network's
        outputs, float32, detached. Targets and `valid` are the task's (see Task.loss)."""
        seed = (self.config.seed, step, micro_step, self.runtime.rank)
        torch.manual_seed(_seed_of(*seed))
        if self.reducer:
            self.reducer.active = self.engine.is_gradient_accumulation_boundary()
        outputs = self.engine(images).float()
        self.engine.backward(self.task.loss(outputs, targets, valid))
        if self.reducer:
            self.reducer.finish()
        self.engine.step()
        return outputs.detach()

    def close(self) -> None:
        """After the last step, on all ranks: what DeepSpeed's communication logger has to say, if it was asked."""
        if self.config.deepspeed.get("comms_logger", {}).get("enabled"):
            import deepspeed

            deepspeed.comm.log_summary()


def _seed_of(*numbers: int) -> int:
    return int(fold(*numbers)) >> 1  # torch wants a signed 64-bit number
