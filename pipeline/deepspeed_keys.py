"""Which keys of DeepSpeed's own configuration may be set, in the config's `deepspeed` section, and why others may not.

In: that section. Out: nothing, or a ValueError that names the key and what to set instead. DeepSpeed is not imported.
"""

import difflib
from typing import Any

# As documented for DeepSpeed 0.19; None: a value of its own, else the keys of a section.
PASSED: dict[str, tuple[str, ...] | None] = {
    "flops_profiler": ("enabled", "profile_step", "module_depth", "top_modules", "detailed", "output_file"),
    "comms_logger": ("enabled", "verbose", "prof_all", "prof_ops", "debug"),
    "zero_optimization": (
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
    ),
    "wall_clock_breakdown": None,
    "memory_breakdown": None,
    "dump_state": None,
}
OURS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "torch_autocast": "train.precision",
    "communication_data_type": "train.reduction",
    "zero_optimization.stage": "train.zero_stage",
    "steps_per_print": "train.log_every_steps",
    "wandb": "tracking",
    "tensorboard": "tracking",
    "csv_monitor": "tracking",
}


def check(section: dict[str, Any], zero_stage: int) -> None:
    """Raises ValueError for a key that is ours, unknown, or without effect at this ZeRO stage."""
    for key, value in section.items():
        if key in PASSED and (inner := PASSED[key]) is not None:
            if not isinstance(value, dict):
                raise ValueError(f"deepspeed.{key}={value!r} must be a section, for example {{{inner[0]}: ...}}")
            for name in value:
                _require(f"{key}.{name}", name in inner, [f"{key}.{other}" for other in inner])
        else:
            _require(key, key in PASSED, list(PASSED))
    if "zero_optimization" in section and not zero_stage:
        raise ValueError("deepspeed.zero_optimization does nothing at train.zero_stage=0. Set train.zero_stage=1 or 2")


def _require(key: str, known: bool, others: list[str]) -> None:
    if known:
        return
    if key in OURS:
        raise ValueError(f"deepspeed.{key} is decided by {OURS[key]}. Set that instead")
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(others)}"
    raise ValueError(f"deepspeed.{key} is not passed on to DeepSpeed. {hint}")
