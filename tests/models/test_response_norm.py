"""The GPU's kernels of response normalisation: on Triton's interpreter against nn.LocalResponseNorm, and compiled for
GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# nn.LocalResponseNorm divides its alpha by the number of channels it sums over; the paper's does not. A larger alpha
# than the paper's, so that neighbours count.
K, ALPHA, SIZE = 2.0, 1e-2, 5


def reference(maps: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and input gradients in float64."""
    x = maps.detach().double().requires_grad_()
    y = nn.LocalResponseNorm(SIZE, alpha=ALPHA * SIZE, beta=0.75, k=K)(x)
    y.backward(gradient.double())
    assert x.grad is not None
    return y.detach(), x.grad


def ours(maps: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from models.response_norm import response_norm

    x = maps.detach().requires_grad_()
    y = response_norm(x, K, ALPHA)
    y.backward(gradient)
    assert x.grad is not None
    return y.detach(), x.grad


def draw(channels: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    maps, gradient = (torch.randn(2, channels, 5, 7, generator=generator) for _ in range(2))
    return 20 * maps.to(device), gradient.to(device)


def compare(channels: int, device: str, dtype: torch.dtype, tolerance: float) -> None:
    maps, gradient = (drawn.to(dtype) for drawn in draw(channels, device))
    got = ours(maps, gradient)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for found, expected in zip(got, reference(maps, gradient), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_the_kernels_compute_what_torch_does():
    """In a process of its own: whether Triton interprets is decided when its functions are defined. 8 channels are
    fewer than a window reaches over, 96 are the paper's, 24 end in the middle of a block."""
    code = "from tests.models.test_response_norm import *\nfor n in (8, 24, 96): compare(n, 'cpu', torch.float32, 1e-5)"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [8, 24, 96, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_the_kernels_compute_what_torch_does_on_a_gpu(channels, dtype, tolerance):
    compare(channels, "cuda", dtype, tolerance)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_the_kernels_compile_for_gpus(capability, dtype):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import response_norm

    constants = {"channels": 96, "block": response_norm.BLOCK}
    for kernel in (response_norm._forward, response_norm._backward):
        kinds = dict.fromkeys(kernel.arg_names, dtype) | {"size": "i64", "k": "fp32", "alpha": "fp32"}
        kinds |= dict.fromkeys(constants, "constexpr")
        built = compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", capability, 32))
        assert built.asm["cubin"]
