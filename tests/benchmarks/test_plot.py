"""Pictures as a command draws them."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import refused

ROOT = Path(__file__).parents[2]


def test_a_picture_of_runs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    points = [{"step": n, "epoch": n / 2, "train/top1_error": 1 / n} for n in (1, 2, 3)]
    points += [{"step": 2, "epoch": 1.0, "eval/centre/top1_error": 0.4}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    picture = tmp_path / "curves.png"
    command = [sys.executable, "-m", "tests.benchmarks.plot", "curves", str(run), str(picture)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert picture.read_bytes().startswith(b"\x89PNG")
    command[-2] = str(tmp_path)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert "is no run folder" in refused(ended)
