"""Which keys of DeepSpeed's own configuration may be set, in the config's `deepspeed` section, and why others may not.

In: that section. Out: nothing, or a ValueError that names the key and what to set instead. DeepSpeed is not imported.
"""

import difflib
from typing import Any

# As documented for DeepSpeed 0.19: keys with the type of their value, or sections of such. round_robin_gradients is not
# among them: it orders ZeRO's slices in a way that optimizer_state.py does not know.
PASSED: dict[str, type | dict[str, type]] = {
    "flops_profiler": {
        "enabled": bool,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "prof_ops": list, "debug": bool},
    "zero_optimization": {
        "allgather_bucket_size": int,
        "allgather_partitions": bool,
        "contiguous_gradients": bool,
        "overlap_comm": bool,
        "reduce_bucket_size": int,
        "reduce_scatter": bool,
    },
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
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
    """Raises ValueError for a key that is ours, unknown, of another type, or without effect at this ZeRO stage."""
    for key, value in section.items():
        kind = PASSED.get(key)
        if not isinstance(kind, dict):
            _require(key, kind is not None, list(PASSED))
            assert kind is not None
            _require_type(key, value, kind)
        elif not isinstance(value, dict):
            raise ValueError(f"deepspeed.{key}={value!r} must be a section, for example {{{next(iter(kind))}: ...}}")
        else:
            for name, inner in value.items():
                _require(f"{key}.{name}", name in kind, [f"{key}.{other}" for other in kind])
                _require_type(f"{key}.{name}", inner, kind[name])
    for key in ("zero_optimization", "comms_logger"):  # at stage 0 gradients are not reduced by DeepSpeed
        if key in section and not zero_stage:
            raise ValueError(f"deepspeed.{key} does nothing at train.zero_stage=0. Set train.zero_stage=1 or 2")


def _require_type(key: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        names = {bool: "true or false", int: "a whole number", str: "a text", list: "a list"}
        raise ValueError(f"deepspeed.{key}={value!r} must be {names[kind]}")


def _require(key: str, known: bool, others: list[str]) -> None:
    if known:
        return
    if key in OURS:
        raise ValueError(f"deepspeed.{key} is decided by {OURS[key]}. Set that instead")
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(others)}"
    raise ValueError(f"deepspeed.{key} is not passed on to DeepSpeed. {hint}")
