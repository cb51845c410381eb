"""Hints can be pasted: a shell that gets one runs this interpreter with these words."""

import shlex
import subprocess
import sys
from pathlib import Path

from pipeline import hints


def test_a_hint_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hint = hints.command("json.tool", "Катя's set/a b.json")
    Path("Катя's set").mkdir()
    Path("Катя's set/a b.json").write_text('{"x": 1}')
    done = subprocess.run(hint, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == '{\n    "x": 1\n}\n', done.stderr
    assert shlex.split(hint)[0] == sys.executable


def test_what_lies_below_this_folder_is_written_short(tmp_path, monkeypatch):
    """Also through a link, as a venv's python is one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert hints.command("launch.pack", "SOURCE", "OUT") == "bin/python -m launch.pack SOURCE OUT"
    assert hints.script("launch/single_node.sh", "data.train=a b") == (
        f"{hints.ROOT}/launch/single_node.sh 'data.train=a b'"
    )
    monkeypatch.chdir(hints.ROOT)
    assert hints.ours("configs/alexnet.yaml") == "configs/alexnet.yaml"
    assert Path(hints.ours("configs/alexnet.yaml")).exists()
