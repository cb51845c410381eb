"""Runs that commit 3a240df wrote (tests/fixtures) go on, and end where that version ended."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import checkpoint
from pipeline.errors import UserError
from tests.distributed.test_runs import run

STORED = Path(__file__).parents[1] / "fixtures" / "3a240df"


@pytest.fixture
def stored(tmp_path) -> Path:
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    return folder


def train(stored: Path, world: int, folder: str, rule: str) -> dict[str, torch.Tensor]:
    sets = [f"data.{name}={stored / name}" for name in ("train", "validation")]
    words = [str(stored / "config.yaml"), f"run={stored / folder}", f"optimizer.lr_in_velocity={rule}", *sets]
    run(world, "launch.train", *words)
    return load_file(stored / folder / "checkpoints" / "step-00000050" / "model.safetensors")


def assert_equal(ours: dict[str, torch.Tensor], rule: str, world: int) -> None:
    """Bit for bit where they were made; within 1e-3 of the largest weight where products are rounded otherwise."""
    theirs = load_file(STORED / f"after50-{rule}-{world}.safetensors")
    assert ours.keys() == theirs.keys()
    same_machine = "AMD EPYC" in Path("/proc/cpuinfo").read_text() and torch.__version__.startswith("2.14.0")
    for name, value in theirs.items():
        if same_machine:
            assert torch.equal(ours[name], value), name
        else:
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-3 * float(value.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["false", "true"])
def test_a_stored_run_goes_on_with_its_momentum(stored, rule):
    assert_equal(train(stored, 1, f"run-{rule}", rule), rule, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["false", "true"])
@pytest.mark.parametrize("world", [1, 2])
def test_fifty_steps_are_the_same_steps(stored, rule, world):
    assert_equal(train(stored, world, "anew", rule), rule, world)


def test_momentum_of_an_engine_file_goes_to_its_parameters(stored):
    """In the file it is numbered: weights first, then biases."""
    checkpoints = stored / "run-true" / "checkpoints"
    folder = checkpoints / "step-00000040"
    weights = load_file(folder / "model.safetensors")
    momentum = checkpoint.read_optimizer(folder).momentum
    engine = torch.load(folder / checkpoint.OLD_ENGINE, map_location="cpu", weights_only=True)
    raw, in_order = engine["optimizer"]["state"], list(engine["module"])
    assert len(momentum) == len(raw) == len(in_order)
    matrices = [name for name in in_order if weights[name].ndim > 1]
    vectors = [name for name in in_order if weights[name].ndim == 1]
    for number, name in enumerate(matrices + vectors):
        assert momentum[name].shape == weights[name].shape
        assert torch.equal(momentum[name], raw[number]["momentum_buffer"])


def test_an_engine_file_that_holds_code_is_refused_by_name(stored):
    folder = stored / "run-true" / "checkpoints" / "step-00000040"
    torch.save({"module": Path("/")}, folder / checkpoint.OLD_ENGINE)
    with pytest.raises(UserError) as caught:
        checkpoint.read_optimizer(folder)
    assert str(folder / checkpoint.OLD_ENGINE) in str(caught.value)
    assert f"model.weights={folder}" in str(caught.value)
