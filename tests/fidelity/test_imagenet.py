"""The gate for those who have ImageNet: torchvision's published weights score what torchvision says, within 0.1 points.

    TENCROP_IMAGENET=data/imagenet/validation .venv/bin/python -m pytest tests/fidelity/test_imagenet.py -s

The folder is the packed validation set (50,000 images in their own bytes, not made smaller). Weights come from torch's
hub folder, or from the network. About a quarter of an hour a network on one GPU's machine, hours on a CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.index import load
from pipeline.evaluation.published import torchvision_entries

IMAGENET = os.environ.get("TENCROP_IMAGENET")
NETWORKS = ["alexnet", "vgg16", "vgg19", "vgg16_bn", "vgg19_bn"]
POINTS = 0.1
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IMAGENET, reason="TENCROP_IMAGENET names no packed validation set of ImageNet"),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_published_errors(name, tmp_path):
    assert len(load(IMAGENET)) == 50_000
    out = tmp_path / "evaluation.json"
    words = ["--data", IMAGENET, "--views", "centre", "--out", str(out), "tracking=none", "train.precision=fp32"]
    command = [sys.executable, "-m", "launch.evaluate", f"torchvision:{name}", *words]
    subprocess.run(command, check=True, cwd=ROOT)
    centre = json.loads(out.read_text())["views"]["centre"]
    wanted = torchvision_entries(name)[0].errors
    found = centre["top1_error_percent"], centre["top5_error_percent"]
    print(f"{name}: {found[0]:.3f} / {found[1]:.3f}, published {wanted[0]:.3f} / {wanted[1]:.3f}")
    assert centre["seen"] == 50_000
    assert found == pytest.approx(wanted, abs=POINTS)
