"""launch.export prints Python that loads what it wrote, which runs in another process and gives the same scores."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launch import export as command
from models.build import build
from pipeline.errors import UserError
from tests.conftest import called, disk_of, fill

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


def test_a_full_disk_is_one_message_and_leaves_what_was_there(tmp_path):
    one = build("alexnet", 7, width=0.0625)
    save_file(one.state_dict(), tmp_path / "w.safetensors")
    from pipeline.evaluation import classifier, export

    read = classifier.read(f"alexnet={tmp_path / 'w.safetensors'}", ["model.num_classes=7", "model.width=0.0625"])
    with disk_of(tmp_path / "small", 8 << 20) as disk:
        export.export(read, disk / "out.safetensors")
        before = (disk / "out.safetensors").read_bytes()
        fill(disk, left=64 << 10)
        needed = sum(value.nbytes for value in one.state_dict().values())
        with pytest.raises(UserError) as caught:
            export.export(read, disk / "out.safetensors")
        assert str(caught.value).startswith(f"{disk / 'out.safetensors'} cannot be written: the disk is full")
        assert f"it takes {needed:,} bytes" in str(caught.value)
        assert "then run the same command again" in str(caught.value)
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "out.json", "out.safetensors"]
        assert (disk / "out.safetensors").read_bytes() == before
