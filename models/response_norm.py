"""Response normalisation (AlexNet 2012, section 3.3) as one Triton kernel forward and one backward, for GPUs.

In: maps (N, channels, H, W), in any float type. Out: maps in channels_last memory; all sums are float32. Each kernel
reads its inputs once and writes its output once, where operators of torch need some thirty passes over memory.
`models.alexnet.ResponseNorm` holds the same in torch's operators, which a CPU uses and tests compare with.
"""

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024


@torch.library.custom_op("tencrop::response_norm", mutates_args=())
def response_norm(x: torch.Tensor, k: float, alpha: float) -> torch.Tensor:
    """y = x d^-0.75 with d = k + alpha around(x^2), where `around` sums over the five channels around one."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    _forward[_grid(x)](x, y, x.numel(), k, alpha, x.shape[1], BLOCK)
    return y


@torch.library.custom_op("tencrop::response_norm_backward", mutates_args=())
def response_norm_backward(x: torch.Tensor, gradient: torch.Tensor, k: float, alpha: float) -> torch.Tensor:
    """dx = g d^-0.75 - 1.5 alpha x around(g x d^-1.75)."""
    x, gradient = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, gradient))
    dx = torch.empty_like(x)
    _backward[_grid(x)](x, gradient, dx, x.numel(), k, alpha, x.shape[1], BLOCK)
    return dx


@response_norm.register_fake
def _(x: torch.Tensor, k: float, alpha: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@response_norm_backward.register_fake
def _(x: torch.Tensor, gradient: torch.Tensor, k: float, alpha: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[torch.Tensor, float, float], output: torch.Tensor) -> None:
    x, ctx.k, ctx.alpha = inputs
    ctx.save_for_backward(x)


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return response_norm_backward(x, gradient, ctx.k, ctx.alpha), None, None


response_norm.register_autograd(_gradients, setup_context=_save)


def _grid(x: torch.Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


@triton.jit
def _places(channels: tl.constexpr, block: tl.constexpr):
    """Where the elements of this program lie, and in which channels. Only one division is of 64 bits."""
    first, own = tl.program_id(0).to(tl.int64) * block, tl.arange(0, block)
    return first + own, ((first % channels).to(tl.int32) + own) % channels


@triton.jit
def _load(pointer, at, channel, shift: tl.constexpr, size, channels: tl.constexpr):
    """Elements `shift` channels further on, float32; 0 beyond the first and last channel."""
    there = (at < size) & (channel + shift >= 0) & (channel + shift < channels)
    return tl.load(pointer + at + shift, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _forward(x_pointer, y_pointer, size, k, alpha, channels: tl.constexpr, block: tl.constexpr):
    at, channel = _places(channels, block)
    x = _load(x_pointer, at, channel, 0, size, channels)
    around = x * x
    for shift in tl.static_range(1, 3):
        before = _load(x_pointer, at, channel, -shift, size, channels)
        behind = _load(x_pointer, at, channel, shift, size, channels)
        around += before * before + behind * behind
    root = tl.rsqrt(k + alpha * around)
    y = x * root * tl.sqrt(root)  # d^-0.75
    tl.store(y_pointer + at, y.to(y_pointer.dtype.element_ty), mask=at < size)


@triton.jit
def _backward(x_pointer, g_pointer, dx_pointer, size, k, alpha, channels: tl.constexpr, block: tl.constexpr):
    at, channel = _places(channels, block)
    # Nine neighbours, each read once: written out, since Triton has no arrays and would read them 25 times in loops.
    a = _load(x_pointer, at, channel, -4, size, channels)
    b = _load(x_pointer, at, channel, -3, size, channels)
    c = _load(x_pointer, at, channel, -2, size, channels)
    d = _load(x_pointer, at, channel, -1, size, channels)
    x = _load(x_pointer, at, channel, 0, size, channels)
    f = _load(x_pointer, at, channel, 1, size, channels)
    g = _load(x_pointer, at, channel, 2, size, channels)
    h = _load(x_pointer, at, channel, 3, size, channels)
    i = _load(x_pointer, at, channel, 4, size, channels)
    inner = d * d + x * x + f * f  # of the five windows around x each holds x and at least one neighbour of it
    before, behind = b * b + c * c, g * g + h * h
    _, s0 = _slope(g_pointer, at, channel, -2, size, channels, c, k + alpha * (a * a + before + d * d + x * x))
    _, s1 = _slope(g_pointer, at, channel, -1, size, channels, d, k + alpha * (before + inner))
    direct, s2 = _slope(g_pointer, at, channel, 0, size, channels, x, k + alpha * (c * c + inner + g * g))
    _, s3 = _slope(g_pointer, at, channel, 1, size, channels, f, k + alpha * (inner + behind))
    _, s4 = _slope(g_pointer, at, channel, 2, size, channels, g, k + alpha * (x * x + f * f + behind + i * i))
    dx = direct - 1.5 * alpha * x * (s0 + s1 + s2 + s3 + s4)
    tl.store(dx_pointer + at, dx.to(dx_pointer.dtype.element_ty), mask=at < size)


@triton.jit
def _slope(g_pointer, at, channel, shift: tl.constexpr, size, channels: tl.constexpr, x, d):
    """g d^-0.75 and g x d^-1.75 of the channel `shift` further on, where x and d are that channel's."""
    root = tl.rsqrt(d)
    direct = _load(g_pointer, at, channel, shift, size, channels) * root * tl.sqrt(root)
    return direct, direct * x / d
