"""Waits add up until they are taken; on a GPU only the device's own count."""

import time

import pytest
import torch

from pipeline.stopwatch import Stopwatch


def test_blocks_add_up_and_are_taken_once():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        with watch:
            time.sleep(0.01)
    assert 0.03 <= watch.take_s() < 10
    assert watch.take_s() == 0


def test_a_block_that_raises_counts_too():
    watch = Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert watch.take_s() > 0


@pytest.mark.gpu
def test_a_wait_while_the_gpu_has_work_is_none():
    device = torch.device("cuda", 0)
    watch, left = Stopwatch(device), torch.randn(8192, 8192, device=device)
    (left @ left).sum().item()  # warm
    for _ in range(50):
        left @ left
    with watch:
        time.sleep(0.01)  # the GPU is busy for longer
    assert watch.take_s() < 0.005
    with watch:
        time.sleep(0.05)
    assert watch.take_s() > 0.04
