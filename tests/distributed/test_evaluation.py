"""The same bits of an evaluation at 1, 2 and 3 ranks and any batch: probabilities of each image, counts, losses."""

import json
from pathlib import Path

import pytest
import torch

from models.build import build
from tests.distributed.test_runs import run

VIEWS = "centre,ten,50@64-80,dense,ten+dense@90"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    torch.manual_seed(0)
    network = build("vgg11_bn", 5, width=0.125)
    with torch.no_grad():
        network.classifier[-1].weight.mul_(30)
    file = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(network.state_dict(), file)
    return f"vgg11_bn={file}"


def evaluated(source: str, data: Path, out: Path, world: int, micro_batch: int) -> tuple[dict, bytes]:
    settings = ["model.width=0.125", "data.crop_px=64", "data.resize_px=72", "data.threads=1", "tracking=none"]
    words = ["--data", str(data), "--views", VIEWS, "--micro-batch", str(micro_batch), "--out", str(out)]
    predictions = out.with_suffix(".csv")
    threads = 2 if world == 1 else 1  # as people have it: one process takes all cores
    run(world, "launch.evaluate", source, *settings, *words, "--save-predictions", str(predictions), threads=threads)
    return json.loads(out.read_text()), predictions.read_bytes()


@pytest.mark.slow
def test_the_same_bits_at_any_number_of_ranks(source, held_out, tmp_path):
    one = evaluated(source, held_out, tmp_path / "1.json", 1, 64)
    assert 0 < one[0]["views"]["ten"]["correct1"] < 23
    for world, micro_batch in ((2, 64), (3, 5)):
        other = evaluated(source, held_out, tmp_path / f"{world}.json", world, micro_batch)
        assert other[0]["views"] == one[0]["views"]
        assert other[0]["processes"] == world
        assert other[1] == one[1]
