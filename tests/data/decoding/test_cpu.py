"""Finishing on the CPU: memory is taken again only when nobody looks, and giants do not stay in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.data.decoding.cpu import _Buffers
from pipeline.packing import indexing
from tests.conftest import jpeg, photo, write_set, write_tar


def test_a_buffer_is_taken_again_when_nobody_holds_a_view_of_it():
    buffers = _Buffers(pinned=False)
    first = buffers.take((2, 3))
    place = first.ctypes.data
    held = torch.from_numpy(first).permute(1, 0)[1:]
    del first
    second = buffers.take((2, 3))
    assert second.ctypes.data != place
    del held
    assert buffers.take((2, 3)).ctypes.data == place
    assert buffers.take((3, 3)).shape == (3, 3)


def test_threads_of_torch_stay_as_they_were(photos):
    from tests.data.test_loader import settings, steps_of

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        steps_of(photos, settings(), 0, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


GIANTS = """
import sys
import torch
from pipeline.config import Data
from pipeline.data.index import load
from pipeline.data.loader import order_of, train_batches
from pipeline.runtime import RankInfo

def own_mb():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) // 1024

index, data = load(sys.argv[1]), Data(pca_std=0, threads=1, prefetch=1)
order = order_of(index, data, 8, 0)
alone, cpu = RankInfo(0, 1, 0, 1), torch.device("cpu")
batches = train_batches(index, data, order, rank_info=alone, device=cpu, micro_steps=1, steps=range(0, 40))
used = [own_mb() for batch in batches]
print(max(used[:10]), max(used[-10:]))
"""


@pytest.mark.slow
def test_giant_images_pass_through_every_row_without_staying_in_memory(tmp_path):
    """6,000 x 6,000 px are 108 MB when decoded, and an eighth of the rows hold one: kept, they would be 2.6 GB."""
    folder = write_set(tmp_path / "set", 16, num_shards=1)
    from pipeline.packing.scan import scan_shard

    giant = jpeg(np.kron(photo(0, 0, 60, 60), np.ones((100, 100, 1), np.uint8)))
    images = [giant if number % 8 == 3 else jpeg(photo(number, 0, 300, 300)) for number in range(16)]
    members = [
        (f"{n}.{kind}", data) for n, image in enumerate(images) for kind, data in (("jpg", image), ("cls", b"0"))
    ]
    write_tar(folder / "shard-000000.tar", members)
    indexing.write(folder, [scan_shard(folder / "shard-000000.tar")], ["x"])
    ended = subprocess.run(
        [sys.executable, "-c", GIANTS, str(folder)], capture_output=True, text=True, check=True, timeout=300
    )
    early, late = map(int, ended.stdout.split())
    assert late < early + 300
    assert late < 1500
