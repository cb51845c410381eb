"""What the config's deepspeed section takes, and what it says of the rest."""

import pytest

from pipeline.deepspeed_keys import check


@pytest.mark.parametrize(
    ("section", "zero_stage"),
    [
        ({}, 0),
        ({"flops_profiler": {"enabled": True, "profile_step": 5, "output_file": "flops.txt"}}, 0),
        ({"comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}, "dump_state": True}, 1),
        ({"zero_optimization": {"reduce_bucket_size": 5_000_000, "overlap_comm": False}}, 2),
    ],
)
def test_documented_keys_are_taken(section, zero_stage):
    check(section, zero_stage)


@pytest.mark.parametrize(
    ("section", "zero_stage", "reason"),
    [
        ({"gradient_clipping": 1.0}, 0, "deepspeed.gradient_clipping is decided by optimizer.clip_norm"),
        ({"zero_optimization": {"stage": 2}}, 1, "deepspeed.zero_optimization.stage is decided by train.zero_stage"),
        ({"fp16": {"enabled": True}}, 0, "decided by train.precision"),
        ({"flop_profiler": {"enabled": True}}, 0, "Did you mean flops_profiler"),
        ({"flops_profiler": {"enable": True}}, 0, "Did you mean flops_profiler.enabled"),
        ({"flops_profiler": True}, 0, "must be a section"),
        ({"flops_profiler": {"profile_step": True}}, 0, "must be a whole number"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, 1, "must be a whole number"),
        ({"zero_optimization": {"round_robin_gradients": True}}, 1, "is not passed on"),
        ({"zero_optimization": {"reduce_bucket_size": 5}}, 0, "does nothing at train.zero_stage=0"),
        ({"comms_logger": {"enabled": True}}, 0, "does nothing at train.zero_stage=0"),
    ],
)
def test_others_are_refused_by_name(section, zero_stage, reason):
    with pytest.raises(ValueError, match=reason):
        check(section, zero_stage)
