"""launch.export prints Python that loads what it wrote, which runs in another process and gives the same scores."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import called
from safetensors.torch import save_file

from launch import export as command
from models.build import build

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "settings", "by"),
    [
        ("alexnet", {"model.width=0.25": ("width", 0.25)}, "models.build"),
        ("vgg11", {}, "torchvision"),
        ("alexnet_2012", {"model.groups=1": ("groups", 1)}, "models.build"),
        ("torchvision:squeezenet1_1", {}, "torchvision"),
    ],
)
def test_the_lines_that_are_printed_load_it(tmp_path, monkeypatch, name, settings, by):
    torch.manual_seed(0)
    one = build(name, 7, **dict(settings.values())).eval()
    folder = tmp_path / "Катя's weights"
    folder.mkdir()
    save_file(one.state_dict(), folder / "w.safetensors")
    from pipeline.evaluation import classifier

    read = classifier.read
    changes = [*settings, "model.num_classes=7"]
    monkeypatch.setattr(classifier, "read", lambda source, _, best: read(source, changes, best))
    out = folder / "out.safetensors"
    done = called(command.main, f"{name}={folder / 'w.safetensors'}", out)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("import", "from", "model"))]
    assert len(lines) >= 3
    assert f"from {by} import" in lines[1] if by == "models.build" else "torchvision" in lines[0]
    images = torch.rand(2, 3, 224, 224)
    torch.save(images, tmp_path / "images.pt")
    code = "\n".join(lines) + ("\nimport torch, sys\ntorch.save(model.eval()(torch.load(sys.argv[1])), sys.argv[2])")
    words = [sys.executable, "-c", code, tmp_path / "images.pt", tmp_path / "scores.pt"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "scores.pt"), one(images), rtol=1e-4, atol=1e-5)
