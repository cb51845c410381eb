"""launch.bench: contestants take turns and are told of when they cannot; nonsense is refused. No time is asserted."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import jpeg, photo, refused

from tests.benchmarks.rounds import Process, race

ROOT = Path(__file__).parents[2]
# Answers as a contestant does; leaves in its second counted turn if told so.
FAKE = """
import json, sys
print(json.dumps({"versions": "fake 1"}), flush=True)
for turn, line in enumerate(sys.stdin):
    if turn == int(sys.argv[1]):
        sys.exit("had enough")
    print(json.dumps({"images": int(line.split()[1]), "seconds": 0.5}), flush=True)
"""


def bench(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.bench", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def photos(tmp_path) -> Path:
    """80 small photos in 4 class folders."""
    folder = tmp_path / "photos"
    for number in range(80):
        path = folder / f"class-{number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(number, number % 4, 60 + number % 7, 90)))
    return folder


@pytest.mark.slow
def test_ours_and_a_peer_take_turns_and_a_missing_one_is_told(photos, tmp_path):
    names = ["ours", "torchvision_folder", "ffcv_raw"]
    out = tmp_path / "loader.json"
    words = ["--photos", str(photos), "--work", str(tmp_path / "work"), "--out", str(out), "--sizes", "original"]
    words += ["--contestants", ",".join(names), "--rounds", "2", "--images", "128", "--min-turn-s", "0", "--cores", "1"]
    done = bench("loader", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert set(rows) == {"contestant", *names}
    assert "not installed" in rows["ffcv_raw"]
    results = json.loads(out.read_text())["results"]["original"]
    for name in names[:2]:
        assert results[name]["failed"] == ""
        assert results[name]["images"] == [128, 128]
        assert min(results[name]["seconds"]) > 0


@pytest.mark.slow
def test_views_are_raced_against_their_limits(held_out, tmp_path):
    out = tmp_path / "views.json"
    words = ["--set", str(held_out), "--views", "centre,dense", "--images", "3", "--rounds", "2", "--out", str(out)]
    done = bench("evaluate", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in rows[1:]] == [["centre", "1"], ["dense", "2"]]
    for rates in json.loads(out.read_text())["images_per_s"].values():
        assert set(rates) == {"ours", "forward", "decoding"}
        assert all(len(turns) == 2 and min(turns) > 0 for turns in rates.values())


def test_one_that_ends_is_left_out_with_its_last_words(tmp_path):
    def begin(name: str, turns: int) -> Process:
        return Process([sys.executable, "-c", FAKE, str(turns)], dict(os.environ), ROOT, tmp_path / name)

    results = race(
        {name: partial(begin, name, turns) for name, turns in (("stays", 99), ("leaves", 2))}, 3, 10, 1, print
    )
    assert results["stays"].rates == [40, 40, 40]  # the first turn told that 20 images take a second
    assert results["stays"].versions == "fake 1"
    assert results["leaves"].failed == "ended: had enough"
    assert len(results["leaves"].rates) == 1


def test_what_makes_no_sense_is_refused(photos, tmp_path):
    given = ["--photos", str(photos), "--work", str(tmp_path / "work")]
    assert "there is no 'theirs'" in refused(bench("loader", *given, "--contestants", "ours,theirs"))
    assert "--rounds 0" in refused(bench("loader", *given, "--rounds", "0"))
    assert "is no folder" in refused(bench("loader", "--photos", str(tmp_path / "nothing")))
    assert "--images 0" in refused(bench("evaluate", "--set", str(photos), "--images", "0"))
    assert "'six' is no view" in refused(bench("evaluate", "--set", str(photos), "--views", "six"))
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(bench("loader", "--photos", str(tmp_path / "empty")))
