"""Gradients of two real ranks, averaged: equal to the mean, in few reductions, in float32 or bfloat16."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline import reduction
from pipeline.reduction import Reducer
from pipeline.runtime import Runtime

WORLD, CPU = 2, torch.device("cpu")


def network() -> nn.Module:
    """Fourteen small gradients and a large one."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(7)), nn.Linear(8, 200, bias=False))


def images(rank: int) -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def rank_of_two(rank: int, folder: str, dtype: torch.dtype | None) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    reduction.BUCKET = 500  # elements
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    calls, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda tensor, *rest, **how: calls.append(tensor) or all_reduce(tensor, *rest, **how)
    model = network()
    reducer = Reducer(model, Runtime(rank, WORLD, rank, WORLD, CPU, None), dtype)
    reducer.active = False  # a micro-step that is not the last
    model(images(rank)).square().mean().backward()
    reducer.finish()
    assert not calls
    reducer.active = True
    model(images(rank)).square().mean().backward()
    reducer.finish()
    torch.save((gradients(model), [(call.numel(), call.dtype) for call in calls]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_gradients_are_the_mean_of_all_ranks(dtype, tolerance, tmp_path: Path):
    mp.spawn(rank_of_two, (str(tmp_path), dtype), WORLD)
    expected = [torch.zeros_like(parameter) for parameter in network().parameters()]
    for rank in range(WORLD):
        model = network()
        for _ in range(2):  # micro-steps
            model(images(rank)).square().mean().backward()
        expected = [mean + gradient / WORLD for mean, gradient in zip(expected, gradients(model), strict=True)]
    for rank in range(WORLD):
        found, calls = torch.load(tmp_path / f"{rank}.pt")
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
        # From the last to the first: the large one, then as many of 8 and 64 elements as fit into 500.
        assert calls == [(numel, dtype or torch.float32) for numel in (1600, 440, 64)]


def rank_with_hooks_in_its_own_order(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    model = network()
    unused = nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    reducer = Reducer(model, Runtime(rank, WORLD, rank, WORLD, CPU, None))
    generator = torch.Generator().manual_seed(rank)
    used = [parameter for parameter in model.parameters() if parameter is not unused]
    for number in torch.randperm(len(used), generator=generator).tolist():
        used[number].grad = torch.full_like(used[number], float(number + rank))
        reducer._ready(used[number])
    reducer.finish()
    assert unused.grad is None
    torch.save(gradients(nn.ParameterList(used)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_hooks_may_come_in_another_order_on_each_rank(tmp_path: Path):
    """As they do where one rank's network is compiled. A parameter without a gradient keeps none."""
    mp.spawn(rank_with_hooks_in_its_own_order, (str(tmp_path),), WORLD)
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert [float(gradient.flatten()[0]) for gradient in found] == [number + 0.5 for number in range(len(found))]
        assert all(bool((gradient == gradient.flatten()[0]).all()) for gradient in found)
