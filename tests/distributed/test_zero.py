"""ZeRO stages 1 and 2 take the steps of stage 0, and a run may go on at another stage and number of ranks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_runs import SMALL, points, run

STEPS = 12


@pytest.fixture(scope="module")
def config(tmp_path_factory, photos) -> Path:
    """Four steps an epoch, of two micro-steps each, in which gradients are summed before they are reduced."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"data: {{train: {photos}}}\n"
        "optimizer: {lr: 0.005, lr_in_velocity: true}\n"
        "schedule: {kind: multistep, milestones: [1.5]}\n"
        "train: {epochs: 3, global_batch: 12, micro_batch: 3, log_every_steps: 1, checkpoint_every_steps: 7}\n"
        "tracking: none\n"
    )
    return path


def train(world: int, config: Path, folder: Path, *words: str) -> str:
    return run(world, "launch.train", str(config), f"run={folder}", *SMALL, "model.dropout=0", *words)


def state(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    latest = (folder / "checkpoints" / "latest").read_text().strip()
    return load_file(folder / "checkpoints" / latest / f"{name}.safetensors")


@pytest.fixture(scope="module")
def stage0(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stage0"
    train(2, config, folder)
    return folder


def assert_the_same_run(folder: Path, other: Path) -> None:
    """But for the order in which float32 sums are taken: 1e-5 of the losses, 1e-4 of the largest weight or momentum."""
    ours, theirs = points(folder), points(other)
    assert ours.keys() == theirs.keys() == set(range(1, STEPS + 1))
    for step, point in theirs.items():
        assert ours[step]["train/loss"] == pytest.approx(point["train/loss"], rel=1e-5)
    for name in ("model", "optimizer"):
        expected = state(other, name)
        assert state(folder, name).keys() == expected.keys()
        for key, value in expected.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(state(folder, name)[key], value, rtol=0, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "world"),
    [(1, 2), (2, 3), pytest.param(2, 2, marks=pytest.mark.prove), pytest.param(1, 3, marks=pytest.mark.prove)],
)
def test_stages_take_the_same_steps(stage, world, config, stage0, tmp_path):
    words = ["train.micro_batch=2"] if world == 3 else []
    train(world, config, tmp_path / "run", f"train.zero_stage={stage}", *words)
    assert_the_same_run(tmp_path / "run", stage0)


@pytest.mark.slow
def test_in_bf16_gradients_are_still_reduced_in_fp32(config, tmp_path):
    """DeepSpeed would reduce those of linear layers and convolutions in bf16."""
    words = ["train.precision=bf16", "train.epochs=2"]
    losses = []
    for name, more in {"0": [], "2": ["train.zero_stage=2"]}.items():
        train(2, config, tmp_path / name, *words, *more)
        losses.append([point["train/loss"] for point in points(tmp_path / name).values()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_at_other_stages_and_numbers_of_ranks(config, stage0, tmp_path):
    """Steps 1-7 at stage 0 on two ranks, then stages 2 and 1 on three and one: momentum and velocity come along."""
    folder = tmp_path / "run"
    train(2, config, folder)
    checkpoints = folder / "checkpoints"
    (checkpoints / "latest").write_text("step-00000007\n")
    for path in checkpoints.glob("step-*"):
        if path.name > "step-00000007":
            for file in sorted(path.rglob("*"), reverse=True):
                file.unlink()
            path.rmdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= 7))
    said = train(3, config, folder, "train.zero_stage=2", "train.micro_batch=4", "train.checkpoint_every_steps=3")
    assert "going on after step 7" in said
    assert_the_same_run(folder, stage0)


@pytest.mark.slow
def test_keys_of_deepspeed_reach_it(config, tmp_path):
    """One writes a file, one prints at the end, one changes how many reductions there are."""
    flops = tmp_path / "flops.txt"
    words = ["train.zero_stage=1", "deepspeed.zero_optimization.reduce_bucket_size=1000"]
    words += ["train.compile=false", "deepspeed.comms_logger.enabled=true", "deepspeed.flops_profiler.enabled=true"]
    words += ["deepspeed.flops_profiler.profile_step=2", f"deepspeed.flops_profiler.output_file={flops}"]
    said = train(2, config, tmp_path / "run", *words)
    assert "DeepSpeed Flops Profiler" in flops.read_text()
    assert "Comm. Op" in said
